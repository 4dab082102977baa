/*
 * What a signal handler finds: the code that it has interrupted, and its stack.
 *
 * Stacks: faulthandler gives the main thread a small alternate stack, for stack
 * overflows, and SA_ONSTACK puts our handler there.  A calculation needs more,
 * so it runs on the stack of the code that was interrupted, below its red zone,
 * with the alternate stack switched off meanwhile: a nested signal would begin
 * at its top and overwrite our frame.  A stack overflow is not a touch of a guard
 * and is passed on while still on the alternate stack.
 *
 * Questions: the holder of the GIL, asked to calculate what another thread waits
 * for, may do so only where that is as safe as at a touch of its own: in foreign
 * code (an extension that spins), or in a system call that waits or yields (an
 * extension in pthread_join), but not in code that a calculation uses or that holds
 * locks it would want: Python, NumPy's core, libc, libm, the loader, malloc wherever
 * it lies.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#ifdef __linux__

#    include "interrupted.h"

#    include <errno.h>
#    include <link.h>
#    include <math.h>
#    include <pthread.h>
#    include <sched.h>
#    include <signal.h>
#    include <stdint.h>
#    include <stdlib.h>
#    include <sys/auxv.h>
#    include <sys/syscall.h>
#    include <unistd.h>

/* Below the stack pointer, code may keep data without having moved it. */
#    define RED_ZONE 256

/* sched_yield() is not longer: the number, the call, and the error. */
#    define YIELD_BYTES 16

/* Code that must not be interrupted; written once, before the handler is there. */
static struct {
    uintptr_t start, end;
} ours[8];
static int nours = 0;

#    if defined(__x86_64__)
NPY_NO_EXPORT uintptr_t
npy_deferred_program_counter(ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
}

NPY_NO_EXPORT uintptr_t
npy_deferred_stack_pointer(ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.gregs[REG_RSP];
}

/* Call function(argument) on another stack. */
NPY_NOINLINE void
call_on_stack(void (*function)(void *), void *argument, uintptr_t stack)
{
    __asm__ volatile(
            "movq %%rsp, %%rbx\n\t"
            "movq %[stack], %%rsp\n\t"
            "callq *%[function]\n\t"
            "movq %%rbx, %%rsp"
            : "+D"(argument)
            : [function] "r"(function), [stack] "r"(stack)
            : "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "xmm0",
              "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}
#    elif defined(__aarch64__)
NPY_NO_EXPORT uintptr_t
npy_deferred_program_counter(ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.pc;
}

NPY_NO_EXPORT uintptr_t
npy_deferred_stack_pointer(ucontext_t *context)
{
    return (uintptr_t)context->uc_mcontext.sp;
}

NPY_NOINLINE void
call_on_stack(void (*function)(void *), void *argument, uintptr_t stack)
{
    register void *first __asm__("x0") = argument;
    __asm__ volatile(
            "mov x19, sp\n\t"
            "mov sp, %[stack]\n\t"
            "blr %[function]\n\t"
            "mov sp, x19"
            : "+r"(first)
            : [function] "r"(function), [stack] "r"(stack)
            : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12",
              "x13", "x14", "x15", "x16", "x17", "x19", "x30", "v0", "v1", "v2", "v3",
              "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",
              "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24",
              "v25", "v26", "v27", "v28", "v29", "v30", "v31", "memory", "cc");
}
#    else
NPY_NO_EXPORT uintptr_t
npy_deferred_program_counter(ucontext_t *NPY_UNUSED(context))
{
    return 0;
}

NPY_NO_EXPORT uintptr_t
npy_deferred_stack_pointer(ucontext_t *NPY_UNUSED(context))
{
    return 0;
}

static void
call_on_stack(void (*function)(void *), void *argument, uintptr_t NPY_UNUSED(stack))
{
    function(argument);
}
#    endif

typedef struct {
    void (*function)(void *);
    void *argument;
} call;

static void
without_alternate_stack(void *argument)
{
    call *inner = argument;
    stack_t none = {.ss_flags = SS_DISABLE}, before;
    int changed = sigaltstack(&none, &before) == 0;
    inner->function(inner->argument);
    if (changed) {
        sigaltstack(&before, NULL);
    }
}

static int
is_on(const stack_t *stack, uintptr_t address)
{
    return !(stack->ss_flags & SS_DISABLE) &&
           address - (uintptr_t)stack->ss_sp < stack->ss_size;
}

/* Call with room for a calculation. */
NPY_NO_EXPORT void
npy_deferred_call_with_room(ucontext_t *context, void (*function)(void *),
                            void *argument)
{
    call inner = {function, argument};
    uintptr_t stack = npy_deferred_stack_pointer(context);
    if (stack != 0 && is_on(&context->uc_stack, (uintptr_t)&inner) &&
        !is_on(&context->uc_stack, stack)) {
        call_on_stack(without_alternate_stack, &inner,
                      (stack - RED_ZONE) & ~(uintptr_t)63);
    }
    else {
        function(argument);
    }
}

/* The code that must not be interrupted has these in it. */
static int
add_ours(struct dl_phdr_info *object, size_t NPY_UNUSED(size), void *NPY_UNUSED(unused))
{
    const uintptr_t landmarks[] = {(uintptr_t)&Py_IsInitialized,
                                   (uintptr_t)&add_ours,
                                   (uintptr_t)&malloc,
                                   (uintptr_t)&getpid,
                                   (uintptr_t)&sin,
                                   (uintptr_t)&pthread_create,
                                   (uintptr_t)getauxval(AT_BASE)};
    uintptr_t start = UINTPTR_MAX, end = 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type == PT_LOAD) {
            uintptr_t from = object->dlpi_addr + part->p_vaddr;
            start = from < start ? from : start;
            end = from + part->p_memsz > end ? from + part->p_memsz : end;
        }
    }
    for (size_t i = 0; i < sizeof(landmarks) / sizeof(*landmarks); i++) {
        if (start <= landmarks[i] && landmarks[i] < end &&
            nours < (int)(sizeof(ours) / sizeof(*ours))) {
            ours[nours].start = start;
            ours[nours].end = end;
            nours++;
            break;
        }
    }
    return 0;
}

/* Whether a thread stands in a system call that waits for others. */
static int
is_waiting(ucontext_t *context)
{
    /* One that spins is hardly ever found outside of it, and it never waits. */
    if (npy_deferred_program_counter(context) - (uintptr_t)&sched_yield < YIELD_BYTES) {
        return 1;
    }
#    if defined(__x86_64__)
    const unsigned char *code =
            (const unsigned char *)npy_deferred_program_counter(context);
    long long result = context->uc_mcontext.gregs[REG_RAX];
    if (code[0] == 0x0f && code[1] == 0x05) { /* it is to be made again */
        return result == SYS_futex || result == SYS_nanosleep ||
               result == SYS_clock_nanosleep || result == SYS_sched_yield;
    }
    return code[-2] == 0x0f && code[-1] == 0x05 && result == -EINTR;
#    elif defined(__aarch64__)
    const unsigned int *code =
            (const unsigned int *)npy_deferred_program_counter(context);
    long long number = context->uc_mcontext.regs[8];
    if (code[0] == 0xd4000001) {
        return number == SYS_futex || number == SYS_nanosleep ||
               number == SYS_clock_nanosleep;
    }
    return code[-1] == 0xd4000001 && (long long)context->uc_mcontext.regs[0] == -EINTR;
#    else
    return 0;
#    endif
}

NPY_NO_EXPORT int
npy_deferred_may_interrupt(ucontext_t *context)
{
    uintptr_t pc = npy_deferred_program_counter(context);
    for (int i = 0; i < nours; i++) {
        if (ours[i].start <= pc && pc < ours[i].end) {
            return is_waiting(context);
        }
    }
    return pc != 0;
}

NPY_NO_EXPORT void
npy_deferred_find_our_code(void)
{
    dl_iterate_phdr(add_ours, NULL);
}

#endif /* __linux__ */
