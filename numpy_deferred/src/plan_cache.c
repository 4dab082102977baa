/*
 * Plans that are kept: a line of code that runs again needs no new plan.
 *
 * A plan is kept under its *key*, all that it was made of: ufuncs, types, what
 * reads what, shapes and strides, and how operands lie over the array that is written,
 * as numbers.  Kept are plans with NumPy's own ufuncs and types: these are never freed,
 * so that nothing else comes to have their addresses, and need no references, which
 * programs can count.  A plan is taken off while it runs, so it has one user.
 *
 * What a plan borrows from an expression is put in anew: its nodes and constants.
 * The loops that it is bound to stay, as they depend on types and strides only, but
 * for those of casts, which own references to types.
 *
 * All of it is guarded by the GIL.
 */
#define NPY_DEFERRED_IMPLEMENTATION
#define NPY_NO_DEPRECATED_API NPY_API_VERSION
#define _MULTIARRAYMODULE
#define _UMATHMODULE

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "numpy/arrayobject.h"

#include "deferred.h"
#include "mem_overlap.h"

#include <stdint.h>

/* Plans that may be kept; each has its place, which the key tells. */
#define NPLACES 128
/* Of the result and in all; for each operand and each node; and for their layouts. */
#define WORDS_HEAD 8
#define WORDS_OPERAND 3
#define WORDS_NODE (4 + NPY_DEFERRED_MAX_NARGS + NPY_DEFERRED_MAX_NIN / INPUTS_IN_WORD)
/* A node's inputs take 16 bits each. */
#define INPUTS_IN_WORD ((int)sizeof(uintptr_t) / 2)
#define WORDS_LAYOUT(ndim) (1 + 2 * (ndim))
/* Larger expressions are not kept. */
#define MAX_WORDS 1024

struct npy_deferred_plan_key {
    uint64_t hash;
    int nwords;
    uintptr_t words[];
};

typedef struct {
    int nwords;
    uintptr_t words[MAX_WORDS];
} draft;

static npy_deferred_plan *places[NPLACES];

/* An array, and how it is gone through where it is gone through directly. */
static inline uintptr_t *
add_array(uintptr_t *word, PyArrayObject *array, npy_intp stride)
{
    /* An address of a structure is even. */
    *word++ = (uintptr_t)PyArray_DESCR(array) | (PyArray_ISALIGNED(array) != 0);
    *word++ = (uintptr_t)stride;
    return word;
}

static uintptr_t *
add_layout(uintptr_t *word, PyArrayObject *array)
{
    int ndim = PyArray_NDIM(array);
    *word++ = (uintptr_t)ndim;
    for (int i = 0; i < ndim; i++) {
        *word++ = (uintptr_t)PyArray_DIM(array, i);
        *word++ = (uintptr_t)PyArray_STRIDE(array, i);
    }
    return word;
}

/* How an operand lies over the array that is written, which eager NumPy looks at. */
static uintptr_t
overlap_word(PyArrayObject *operand, PyArrayObject *out)
{
    /* Where only their bounds do, too. */
    return solve_may_share_memory(operand, out, 0) == MEM_OVERLAP_NO
                   ? (uintptr_t)NPY_MIN_INTP
                   : (uintptr_t)(PyArray_BYTES(operand) - PyArray_BYTES(out));
}

/* What a node reads: a constant, a node, or an operand. */
static inline uintptr_t
input_bits(const npy_deferred_expression *expression, PyArrayObject *array)
{
    if (array == NULL) {
        return 0;
    }
    if (npy_deferred_is(array)) {
        return (uintptr_t)npy_deferred_node_of(array)->position << 2 | 1;
    }
    return (uintptr_t)npy_deferred_operand_index(expression, array) << 2 | 2;
}

/* A node whose result is `array`; `*casts` becomes 1 when eager NumPy may have to
 * copy something for it. */
static uintptr_t *
add_node(uintptr_t *word, const npy_deferred_expression *expression,
         const npy_deferred_node *node, PyArrayObject *array, int *casts)
{
    *word++ = (uintptr_t)node->ufunc;
    *word++ = (uintptr_t)node->method;
    *word++ = (uintptr_t)node->order << 16 | (uintptr_t)node->rewrites << 8 |
              (uintptr_t)PyArray_NDIM(array);
    *casts |= PyArray_DESCR(array) != npy_deferred_result_descr(node);
    for (int i = 0; i < node->ufunc->nargs; i++) {
        *word++ = (uintptr_t)node->descrs[i];
    }
    if (node->ufunc->nout > 1) {
        const npy_deferred_node *twin = npy_deferred_twin_in(expression, node);
        uintptr_t its = twin == NULL ? 0 : 1 + (uintptr_t)twin->position;
        *word++ = its << 1 | (uintptr_t)node->output;
    }
    uintptr_t inputs = 0;
    for (int i = 0; i < node->nin; i++) {
        PyArrayObject *input = node->operands[i].array;
        *casts |= input != NULL && (PyArray_DESCR(input) != node->descrs[i] ||
                                    !PyArray_ISALIGNED(input));
        inputs = inputs << 16 | input_bits(expression, input);
        if (i % INPUTS_IN_WORD == INPUTS_IN_WORD - 1 || i == node->nin - 1) {
            *word++ = inputs;
            inputs = 0;
        }
    }
    return word;
}

/* The result of a node, or NULL. */
static PyArrayObject *
array_of(const npy_deferred_walk *walk, int node)
{
    PyArrayObject *array = walk->expression->nodes[node]->array;
    return array == NULL && node == walk->expression->nnodes - 1 ? walk->out : array;
}

/* What eager NumPy's iterators would do depends on all of it. */
static uintptr_t *
add_layouts(uintptr_t *word, const npy_deferred_walk *walk)
{
    const npy_deferred_expression *expression = walk->expression;
    *word++ = (uintptr_t)walk->rows << 1 | walk->packed;
    word = add_layout(word, walk->out);
    for (int i = 0; i < expression->noperands; i++) {
        word = add_layout(word, expression->operands[i]);
    }
    for (int i = 0; i < expression->nnodes; i++) {
        word = add_layout(word, array_of(walk, i));
    }
    return word;
}

/* Returns 0 where no plan is kept. */
static int
make_draft(draft *d, const npy_deferred_walk *walk, npy_deferred_target target)
{
    const npy_deferred_expression *expression = walk->expression;
    int noperands = expression->noperands, nnodes = expression->nnodes;
    int casts = walk->iter != NULL;
    int bound = WORDS_HEAD + WORDS_OPERAND * noperands + WORDS_NODE * nnodes +
                expression->nkept;
    if (walk->iter != NULL) {
        bound += (1 + noperands + nnodes) * WORDS_LAYOUT(PyArray_NDIM(walk->out));
    }
    npy_intp size = PyArray_SIZE(walk->out);
    if (bound > MAX_WORDS || size <= 1) {
        return 0;
    }
    uintptr_t *word = d->words;
    *word++ = (uintptr_t)target << 1 | (uintptr_t)walk->overlaps;
    *word++ = (uintptr_t)expression->nkept << 32 | (uintptr_t)noperands << 16 | nnodes;
    *word++ = (uintptr_t)size;
    *word++ = (uintptr_t)PyArray_NDIM(walk->out);
    word = add_array(word, walk->out, walk->strides[noperands]);
    for (int i = 0; i < noperands; i++) {
        word = add_array(word, expression->operands[i], walk->strides[i]);
        if (target != NPY_DEFERRED_FRESH) {
            *word++ = overlap_word(expression->operands[i], walk->out);
        }
    }
    for (int i = 0; i < nnodes; i++) {
        /* The last operation's array may be the one that it is written to. */
        PyArrayObject *array = array_of(walk, i);
        if (array == NULL) {
            return 0;
        }
        word = add_node(word, expression, expression->nodes[i], array, &casts);
    }
    for (int i = 0; i < expression->nkept; i++) {
        *word++ = (uintptr_t)expression->kept[i]->position;
    }
    casts |= target != NPY_DEFERRED_FRESH ||
             PyArray_DESCR(walk->out) !=
                     npy_deferred_result_descr(expression->nodes[nnodes - 1]);
    *word++ = casts ? (uintptr_t)npy_deferred_buffer_size() : 0;
    if (walk->iter != NULL) {
        word = add_layouts(word, walk);
    }
    d->nwords = (int)(word - d->words);
    return 1;
}

/* Two chains, as each multiplication waits for the one before. */
static uint64_t
hash_of(const draft *d)
{
    uint64_t one = d->nwords, two = 0;
    int i = 0;
    for (; i + 1 < d->nwords; i += 2) {
        one = (one ^ d->words[i]) * 0x9E3779B97F4A7C15u;
        two = (two ^ d->words[i + 1]) * 0xC2B2AE3D27D4EB4Fu;
        one ^= one >> 32;
        two ^= two >> 32;
    }
    if (i < d->nwords) {
        one ^= d->words[i];
    }
    uint64_t hash = (one ^ (two << 29 | two >> 35)) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}

/* Whether neither the ufuncs nor the types of a walk are ever freed. */
static int
is_lasting(const npy_deferred_walk *walk)
{
    const npy_deferred_expression *expression = walk->expression;
    int lasting = npy_deferred_is_builtin(PyArray_DESCR(walk->out));
    for (int i = 0; lasting && i < expression->noperands; i++) {
        lasting = npy_deferred_is_builtin(PyArray_DESCR(expression->operands[i]));
    }
    for (int i = 0; lasting && i < expression->nnodes; i++) {
        const npy_deferred_node *node = expression->nodes[i];
        lasting = npy_deferred_is_own_ufunc(node->ufunc);
        for (int j = 0; lasting && j < node->ufunc->nargs; j++) {
            lasting = npy_deferred_is_builtin(node->descrs[j]);
        }
    }
    return lasting;
}

/*
 * New, or NULL without an exception: the plan is not kept then.  By its name tests
 * know that it may do without memory.
 */
NPY_NOINLINE npy_deferred_plan_key *
npy_deferred_make_key(const draft *d, uint64_t hash)
{
    size_t nbytes = d->nwords * sizeof(uintptr_t);
    npy_deferred_plan_key *key = PyMem_Malloc(sizeof(*key) + nbytes);
    if (key != NULL) {
        key->hash = hash;
        key->nwords = d->nwords;
        memcpy(key->words, d->words, nbytes);
    }
    return key;
}

/* Put in what a plan borrows. */
static void
renew(npy_deferred_plan *plan, const npy_deferred_expression *expression)
{
    for (int i = 0; i < plan->nsteps; i++) {
        npy_deferred_step *step = &plan->steps[i];
        step->status = 0;
        if (step->position >= 0) { /* else the cast of an assignment */
            step->node = expression->nodes[step->position];
            step->own_context.descriptors = step->node->descrs;
        }
    }
    for (int i = 0; i < plan->nvalues; i++) {
        npy_deferred_value *value = &plan->values[i];
        if (value->kind == NPY_DEFERRED_VALUE_CONSTANT) {
            npy_deferred_node *node = expression->nodes[value->position];
            value->data = node->operands[value->operand].constant;
        }
    }
}

/* As npy_deferred_plan_new. */
static int
get_plan(const npy_deferred_walk *walk, npy_deferred_target target,
         npy_deferred_plan **plan)
{
    draft d;
    uint64_t hash = 0;
    int may_be_kept = make_draft(&d, walk, target);
    if (may_be_kept) {
        hash = hash_of(&d);
        npy_deferred_plan *kept = places[hash % NPLACES];
        if (kept != NULL && kept->key->hash == hash && kept->key->nwords == d.nwords &&
            memcmp(kept->key->words, d.words, d.nwords * sizeof(uintptr_t)) == 0) {
            places[hash % NPLACES] = NULL;
            renew(kept, walk->expression);
            *plan = kept;
            return 0;
        }
    }
    int result = npy_deferred_plan_new(walk, target, plan);
    if (result == 0 && may_be_kept && is_lasting(walk)) {
        (*plan)->key = npy_deferred_make_key(&d, hash);
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_plan_get(npy_deferred_walk *walk,
                      const npy_deferred_expression *expression, PyArrayObject *out,
                      npy_deferred_target target, npy_deferred_plan **plan)
{
    int may_pack = 1, result = 1;
    while (result > 0) {
        int opened = npy_deferred_walk_open(walk, expression, out, target, may_pack);
        if (opened <= 0) {
            return opened < 0 ? -1 : 1;
        }
        result = get_plan(walk, target, plan);
        if (result == 0) {
            return 0;
        }
        if (npy_deferred_walk_close(walk, 0) < 0) {
            return -1;
        }
        if (!walk->packed) {
            break;
        }
        may_pack = 0;
    }
    return result;
}

NPY_NO_EXPORT int
npy_deferred_forget_code(void)
{
    int found = 0;
    for (int i = 0; i < NPLACES; i++) {
        for (int j = 0; places[i] != NULL && j < places[i]->nunits; j++) {
            found |= npy_deferred_unit_forget_code(&places[i]->units[j]);
        }
    }
    return found;
}

NPY_NO_EXPORT void
npy_deferred_plan_release(npy_deferred_plan *plan)
{
    if (plan->key == NULL) {
        npy_deferred_plan_free(plan);
        return;
    }
    for (int i = 0; i < plan->nsteps; i++) {
        if (plan->steps[i].is_cast) {
            npy_deferred_step_unbind(&plan->steps[i]);
        }
    }
    npy_deferred_plan **place = &places[plan->key->hash % NPLACES];
    npy_deferred_plan *previous = *place;
    *place = plan;
    if (previous != NULL) {
        npy_deferred_plan_free(previous);
    }
}
