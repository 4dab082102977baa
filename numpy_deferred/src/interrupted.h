/*
 * What a signal handler finds; private to guard.c and interrupted.c, on Linux.
 */
#ifndef NUMPY_DEFERRED_SRC_INTERRUPTED_H_
#define NUMPY_DEFERRED_SRC_INTERRUPTED_H_

#include "numpy/npy_common.h"

#include <stdint.h>
#include <ucontext.h>

/* Of the code that was interrupted; 0 where that is not known. */
NPY_NO_EXPORT uintptr_t
npy_deferred_program_counter(ucontext_t *context);
NPY_NO_EXPORT uintptr_t
npy_deferred_stack_pointer(ucontext_t *context);
/* Call with room for a calculation, whatever stack the handler is on. */
NPY_NO_EXPORT void
npy_deferred_call_with_room(ucontext_t *context, void (*function)(void *),
                            void *argument);
/* Call once, before the following may be. */
NPY_NO_EXPORT void
npy_deferred_find_our_code(void);
/* Whether a calculation may run there that the code did not ask for. */
NPY_NO_EXPORT int
npy_deferred_may_interrupt(ucontext_t *context);

#endif /* NUMPY_DEFERRED_SRC_INTERRUPTED_H_ */
