/*
 * Habits: what became of the results that a line of Python wrote.
 *
 * Where each result of an operation is read by itself, with nothing done to it before,
 * to defer it gains nothing and takes a microsecond or two, which smaller results feel.
 * So lines are watched: after some results in a row that were calculated alone, the
 * next ones are computed at once, but for one now and then, which tells whether the
 * line is used in the same way still.  Operations that broadcast are not watched, as
 * they gain by themselves.
 *
 * A reduction reads a deferred array without storing it, and so does an expression that
 * begins with an array that has a name.  Where it is read again, all is computed again:
 * of lines whose results were, those that follow are stored.  For reductions that is so
 * of functions alone: they compute arithmetic again with all threads, and the sum of
 * what is stored is NumPy's own, which has one.
 *
 * A line is a code object and a place in it, hashed, and not owned: what is known of
 * lines that are gone is forgotten when others come to their place in the table, and a
 * mistake costs time alone.  Larger results never run at once, as they gain from
 * several threads and warm memory.  There are no habits where the user has said what is
 * to be deferred (NUMPY_DEFERRED_MIN_BYTES), unless he asks for them
 * (NUMPY_DEFERRED_HABITS). All of it is guarded by the GIL.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"

/* Results in a row that were calculated alone, after which a line runs at once. */
#define ALONE_AT_LEAST 8
/* Of those that run at once then, each so many-th is deferred. */
#define TRY_EVERY 64
/* Results that are stored after one that was computed twice. */
#define STORED 16
#define NLINES 1024

NPY_NO_EXPORT int npy_deferred_habits_are_kept = 1;

static struct {
    npy_uint32 line;
    npy_uint16 alone;   /* in a row, ALONE_AT_LEAST at most */
    npy_uint16 at_once; /* since one was deferred */
    npy_uint16 stored;  /* how many are to be yet */
    npy_uint16 parts;   /* and of those that are a part of an expression */
} habits[NLINES];

/* The place of a line, which may be that of another one. */
static int
find(npy_uint32 line)
{
    int i = line % NLINES;
    if (habits[i].line != line) {
        habits[i].line = line;
        habits[i].alone = habits[i].at_once = 0;
        habits[i].stored = habits[i].parts = 0;
    }
    return i;
}

NPY_NO_EXPORT npy_uint32
npy_deferred_line_here(void)
{
    PyFrameObject *frame = npy_deferred_habits_are_kept ? PyEval_GetFrame() : NULL;
    if (frame == NULL) {
        return 0;
    }
    PyCodeObject *code = PyFrame_GetCode(frame);
    npy_uint64 place =
            ((npy_uint64)((uintptr_t)code >> 4) << 20) + PyFrame_GetLasti(frame);
    npy_uint32 line = (npy_uint32)((place * 0x9E3779B97F4A7C15u) >> 32);
    Py_DECREF(code); /* the frame has it */
    return line == 0 ? 1 : line;
}

NPY_NO_EXPORT int
npy_deferred_line_is_read_alone(npy_uint32 line)
{
    int i = find(line);
    if (habits[i].alone < ALONE_AT_LEAST) {
        return 0;
    }
    if (++habits[i].at_once < TRY_EVERY) {
        return 1;
    }
    habits[i].at_once = 0;
    return 0;
}

NPY_NO_EXPORT void
npy_deferred_line_note(npy_uint32 line, int alone)
{
    int i = find(line);
    if (!alone) {
        habits[i].alone = 0;
    }
    else if (habits[i].alone < ALONE_AT_LEAST) {
        habits[i].alone++;
    }
}

NPY_NO_EXPORT void
npy_deferred_note_repeated(const npy_deferred_node *node, int is_cheap)
{
    if (node->line != 0) {
        int i = find(node->line);
        habits[i].parts = STORED;
        habits[i].stored = is_cheap ? habits[i].stored : STORED;
    }
}

NPY_NO_EXPORT int
npy_deferred_is_to_be_stored(const npy_deferred_node *node, int is_part)
{
    if (node->line == 0) {
        return 0;
    }
    int i = find(node->line);
    npy_uint16 *left = is_part ? &habits[i].parts : &habits[i].stored;
    int result = *left > 0;
    *left -= result;
    return result;
}
