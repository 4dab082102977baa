/*
 * The private interface of numpy_deferred: the node, the usage record, the
 * plan, and what each .c file offers to the others.  Patches include
 * deferred_hooks.h instead.
 *
 * States of an array, and who owns what:
 *
 *   state      flags             data          mem_handler  owner of operands
 *   ---------  ----------------  ------------  -----------  -----------------
 *   deferred   DEFERRED set      its guard     the node     the node
 *   regular    DEFERRED clear    real memory   a handler    (no node)
 *
 * An array goes from deferred to regular once, in npy_deferred_commit; it is
 * never deferred again.  The node lies in `mem_handler`, as it is what will
 * provide the array's memory: no field of the array structure is added, so
 * that extensions compiled against stock NumPy see the layout they expect.
 *
 * All of it is guarded by the GIL.  Calculation holds the GIL throughout; the
 * only Python code that it can run are the handlers of floating-point errors,
 * and these run when no plan is alive any more.
 */
#ifndef NPY_DEFERRED_IMPLEMENTATION
#    error "deferred.h is private to numpy_deferred; patches use deferred_hooks.h"
#endif

#ifndef NUMPY_DEFERRED_SRC_DEFERRED_H_
#    define NUMPY_DEFERRED_SRC_DEFERRED_H_

#    include "numpy/arrayobject.h"
#    include "numpy/ufuncobject.h"

#    include "deferred_hooks.h"
#    include "dtype_transfer.h"
#    include "tiles.h"

/* Bounds of one expression; at a bound its deepest operand is calculated. */
#    define NPY_DEFERRED_MAX_NODES 64
#    define NPY_DEFERRED_MAX_OPERANDS 32
/*
 * Memory that only pending expressions keep alive: of one expression, in
 * multiples of its result; less than the second number never matters.
 */
#    define NPY_DEFERRED_MAX_HELD_RESULTS 4
#    define NPY_DEFERRED_MIN_HELD_BYTES (1 << 20)
/* Inputs and outputs of a ufunc; calls with more run at once. */
#    define NPY_DEFERRED_MAX_NIN 8
#    define NPY_DEFERRED_MAX_NARGS (NPY_DEFERRED_MAX_NIN + 2)
/* Of a plan: an operation and a cast for each input, and the cast of the result. */
#    define NPY_DEFERRED_MAX_STEPS \
        (1 + NPY_DEFERRED_MAX_NODES * (1 + NPY_DEFERRED_MAX_NIN))
/* Room for a captured scalar: a complex long double. */
#    define NPY_DEFERRED_CONSTANT_SIZE 32
/* Structures of a kind that are kept for the next ones; none where tools look for
 * memory that is used after it was freed. */
#    if defined(__SANITIZE_ADDRESS__)
#        define NPY_DEFERRED_MAX_KEPT 0
#    elif defined(__has_feature)
#        if __has_feature(address_sanitizer)
#            define NPY_DEFERRED_MAX_KEPT 0
#        endif
#    endif
#    ifndef NPY_DEFERRED_MAX_KEPT
#        define NPY_DEFERRED_MAX_KEPT 64
#    endif

typedef struct npy_deferred_node npy_deferred_node;
typedef struct npy_deferred_usage npy_deferred_usage;
typedef struct npy_deferred_operand npy_deferred_operand;
typedef struct npy_deferred_protection npy_deferred_protection;

/* One input of a node: an array, or a scalar captured by value. */
struct npy_deferred_operand {
    PyArrayObject *array;       /* owned; NULL for a scalar; cleared on release */
    npy_deferred_node *node;    /* the node this is part of */
    npy_deferred_usage *usage;  /* of `array`; NULL when not counted */
    npy_deferred_usage *memory; /* of the owner of the array's memory */
    npy_deferred_operand *previous, *next; /* in memory->readers */
    /* Aligned for every dtype that is captured. */
    _Alignas(16) char constant[NPY_DEFERRED_CONSTANT_SIZE];
};

/* What decides whom a warning reaches: attributes of the module warnings. */
enum {
    NPY_DEFERRED_FILTERS,
    NPY_DEFERRED_SHOWWARNING,
    NPY_DEFERRED_SHOWWARNMSG, /* set when catch_warnings records */
    NPY_DEFERRED_NWARNINGS
};

/* Where an operation was written; all NULL where that is not known. */
typedef struct {
    PyCodeObject *code;                         /* owned */
    int instruction;                            /* offset in the code */
    PyObject *module;                           /* owned: the module's name */
    const void *globals;                        /* not owned: an address to compare */
    PyObject *warnings[NPY_DEFERRED_NWARNINGS]; /* owned */
} npy_deferred_origin;

/*
 * A pending operation.  References are held by the deferred array, and by
 * whoever works on the node while code that may drop the array can run.
 *
 * A call with two outputs is two nodes, *twins*, alike but for `output`.  What is told
 * of errors is told of the call: `reported`, `failed` and `budget_failed` are the same
 * in both.
 */
struct npy_deferred_node {
    npy_intp refcount;
    PyArrayObject *array; /* weak: cleared when the array dies or is regular */
    npy_deferred_node *older, *newer; /* the pending list, by serial */
    npy_uint64 serial;                /* grows with every node */
    PyUFuncObject *ufunc;             /* owned */
    PyArrayMethodObject *method;      /* owned */
    /* The error state when the operation was written. */
    int errmask;
    PyObject *errstate;         /* owned, NULL when errmask is 0 */
    unsigned long thread;       /* only set when errmask is not 0 */
    npy_deferred_origin origin; /* only set when errmask is not 0, or reports are on */
    npy_uint32 line;            /* where it is written, for habits.c; 0: not watched */
    PyObject *scope; /* owned: the innermost then; NULL before it is pending */
    NPY_ORDER order; /* the call's order= */
    int rewrites;    /* bits of the inputs that eager NumPy writes the result over */
    int nin;
    int output;              /* which of the call's outputs `array` is */
    npy_deferred_node *twin; /* weak: has the other one; cleared when that is freed */
    /* Upper bounds for the whole expression: shared parts count repeatedly. */
    npy_intp nnodes, noperands, operand_bytes;
    int nevaluated;      /* how often the values were computed, not kept */
    int is_arithmetic;   /* after that: programs did it, at no cost to speak of */
    int raised_nothing;  /* and nothing that an error state wanted to know */
    int is_lasting;      /* and it was asked for, or somebody had its array */
    int is_quiet;        /* it is known that it cannot raise anything */
    npy_uint64 reported; /* NPY_FPE_* not to be told again; see npy_deferred_error */
    int budget_failed;   /* could not be calculated to free memory */
    int failed;          /* its calculation has raised, so someone was told */
    npy_uint64 visited;  /* the last traversal that came here */
    int nuses, position; /* in that traversal: consumers; index of the node */
    void *computed;      /* memory with the values, while errors are reported */
    PyArray_Descr *descrs[NPY_DEFERRED_MAX_NARGS]; /* owned: in..., out... */
    npy_deferred_operand operands[];               /* nin of them */
};

/* Whether it is the only one of its type that NumPy has: native, without metadata. */
static inline int
npy_deferred_is_builtin(PyArray_Descr *descr)
{
    PyArray_Descr *builtin = PyArray_DescrFromType(descr->type_num);
    Py_DECREF(builtin);
    return builtin == descr;
}

/* Of what `array` is; borrowed. */
static inline PyArray_Descr *
npy_deferred_result_descr(const npy_deferred_node *node)
{
    return node->descrs[node->nin + node->output];
}

/* The twin while it is pending too, else NULL. */
static inline npy_deferred_node *
npy_deferred_pending_twin(const npy_deferred_node *node)
{
    return node->twin != NULL && node->twin->array != NULL ? node->twin : NULL;
}

/* Whether these nodes are the two of a call. */
static inline int
npy_deferred_are_twins(npy_deferred_node *const nodes[], int n)
{
    return n == 2 && nodes[0]->twin == nodes[1];
}

/* See `failed`. */
static inline void
npy_deferred_set_failed(npy_deferred_node *node, int failed)
{
    node->failed = failed;
    if (node->twin != NULL) {
        node->twin->failed = failed;
    }
}

/* Who uses an array, and the memory that it owns.  Alive while either does. */
struct npy_deferred_usage {
    PyArrayObject *array;                /* borrowed: kept alive by the operands */
    npy_deferred_usage *chain;           /* hash bucket */
    npy_intp count;                      /* operands that are this array */
    npy_deferred_operand *readers;       /* operands whose memory it owns */
    npy_intp nbytes;                     /* of that memory, when there are readers */
    npy_deferred_protection *protection; /* owned; NULL: writes are not seen */
    npy_uint64 visited;                  /* the last traversal that came here */
};

static inline npy_deferred_node *
npy_deferred_node_of(PyArrayObject *arr)
{
    assert(npy_deferred_is(arr));
    return (npy_deferred_node *)((PyArrayObject_fields *)arr)->mem_handler;
}

/* The values that stats() shows. */
typedef struct {
    npy_intp captured;   /* nodes made */
    npy_intp exposed;    /* calls not captured, as others may write to an input */
    npy_intp calculated; /* deferred arrays that became regular */
    npy_intp fused;      /* evaluations straight into an existing array */
    npy_intp reduced;    /* evaluations by a reduction, stored nowhere */
    npy_intp together;   /* of these, in one sweep with others */
    npy_intp released;   /* nodes dropped without being calculated */
    npy_intp flushed;    /* writes that found dependents */
    npy_intp late;       /* calculated by PyArray_DATA, not by a hook */
    npy_intp compiled;   /* tile programs made machine code */
} npy_deferred_counters;

extern NPY_NO_EXPORT npy_deferred_counters npy_deferred_stats;

/* ---- state.c: whether calls are deferred ---- */

NPY_NO_EXPORT int
npy_deferred_state_init(PyObject *module);
/* 1, 0, or -1 with an exception, for a call under this error mask. */
NPY_NO_EXPORT int
npy_deferred_enabled(int errmask);
/* Returns a new reference to the previous state, or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_set_state(PyObject *state);
NPY_NO_EXPORT PyObject *
npy_deferred_get_state(void);
/* Returns a new reference to the token that takes it back, or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_enter_state(PyObject *state);
/*
 * Positive while this thread runs code that deferral itself calls: handlers of
 * floating-point errors, and what is called when operands die.  A write may be
 * under way that has flushed its readers already, so nothing is deferred then.
 */
extern NPY_NO_EXPORT NPY_TLS int npy_deferred_calling_out;
/* Results smaller than this many bytes are not deferred. */
extern NPY_NO_EXPORT npy_intp npy_deferred_min_bytes;
/* Whether the environment says how many. */
extern NPY_NO_EXPORT int npy_deferred_min_bytes_chosen;
/* Bytes that only pending expressions may keep alive, all together. */
extern NPY_NO_EXPORT npy_intp npy_deferred_memory_limit;
/* What a touch of a deferred array's data does that no hook has seen coming. */
typedef enum {
    NPY_DEFERRED_GUARD_OFF,    /* as the next inside NumPy, elsewhere a crash */
    NPY_DEFERRED_GUARD_ON,     /* calculates */
    NPY_DEFERRED_GUARD_REPORT, /* says where, and calculates */
    NPY_DEFERRED_GUARD_TRAP,   /* says where, and aborts */
} npy_deferred_guard_modes;
extern NPY_NO_EXPORT npy_deferred_guard_modes npy_deferred_guard_mode;

/* ---- scope.c: what is calculated at the end of np.deferral ---- */

NPY_NO_EXPORT int
npy_deferred_scope_init(PyObject *module);
/* New reference to the innermost scope of this context or None; or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_current_scope(void);
/* New reference to a scope inside it, not entered yet; or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_new_scope(npy_uint64 last_serial);
/* Nodes of the scope have greater serials. */
NPY_NO_EXPORT npy_uint64
npy_deferred_scope_start(PyObject *scope);
/* Whether a pending node was deferred in the scope, or in one inside it. */
NPY_NO_EXPORT int
npy_deferred_in_scope(npy_deferred_node *node, PyObject *scope);

/* ---- layout.c: what eager NumPy's result would look like ---- */

typedef struct {
    int ndim;
    int contiguity; /* NPY_ARRAY_[CF]_CONTIGUOUS, of an array like this; 0: unknown */
    npy_intp size;
    npy_intp dims[NPY_MAXDIMS];
    npy_intp strides[NPY_MAXDIMS];
} npy_deferred_layout;

/*
 * Returns 0, or -1 (no exception) when the operands do not broadcast. `may_be_trivial`:
 * whether eager NumPy does without the iterator where it can.
 */
NPY_NO_EXPORT int
npy_deferred_result_layout(int nin, PyArrayObject *const op[],
                           PyArray_Descr *const descrs[], NPY_ORDER order,
                           int may_be_trivial, npy_deferred_layout *result);
/*
 * New array of NumPy's own class on memory that it does not own: what
 * PyArray_NewFromDescr_int makes, for what needs none of its checks.  `contiguity`
 * is as in a layout, and `data` aligned for all types if `flags` has ALIGNED.
 */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_array_new(PyArray_Descr *descr, int ndim, const npy_intp *dims,
                       const npy_intp *strides, void *data, int flags, int contiguity);
/* Whether a loop of this type can read the array where it lies. */
NPY_NO_EXPORT int
npy_deferred_readable_in_place(PyArrayObject *op, PyArray_Descr *descr);

/* Whether a cast drops imaginary parts, of which eager NumPy warns at once. */
static inline int
npy_deferred_drops_imaginary(PyArray_Descr *from, PyArray_Descr *to)
{
    return PyTypeNum_ISCOMPLEX(from->type_num) && !PyTypeNum_ISCOMPLEX(to->type_num) &&
           to->type_num != NPY_BOOL;
}

/* ---- usage.c: counts and marks on operands ---- */

/*
 * The array that owns the memory of `arr` (borrowed), or NULL when something
 * else does, that may change it behind NumPy's back.
 */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_owner_of_view(PyArrayObject *arr);
static inline PyArrayObject *
npy_deferred_memory_owner(PyArrayObject *arr)
{
    return PyArray_CHKFLAGS(arr, NPY_ARRAY_OWNDATA) ? arr
                                                    : npy_deferred_owner_of_view(arr);
}
/* Borrowed; NULL when nothing uses `arr`. */
NPY_NO_EXPORT npy_deferred_usage *
npy_deferred_find_usage(PyArrayObject *arr);
/* Count and mark an operand.  Returns 0, or -1 with a MemoryError. */
NPY_NO_EXPORT int
npy_deferred_use(npy_deferred_operand *operand);
/* Take that back; does nothing for an operand that is not counted. */
NPY_NO_EXPORT void
npy_deferred_unuse(npy_deferred_operand *operand);
/* `arr`, which pending nodes may read, is regular from now on.  Cannot fail. */
NPY_NO_EXPORT void
npy_deferred_protect_values(PyArrayObject *arr);
/*
 * What reads `from`, which something does, reads `to` instead, which nothing does.
 * Both are deferred, and of the same layout.  Cannot fail.
 */
NPY_NO_EXPORT void
npy_deferred_move_readers(PyArrayObject *from, PyArrayObject *to);
/*
 * Call before an operand is read.  Returns 0; 1 when its memory was written to
 * unseen, and the operand is a copy of what was there now; -1: exception set.
 */
NPY_NO_EXPORT int
npy_deferred_check_protected(npy_deferred_operand *operand);
static inline int
npy_deferred_check_operand(npy_deferred_operand *operand)
{
    return operand->memory == NULL || operand->memory->protection == NULL
                   ? 0
                   : npy_deferred_check_protected(operand);
}

/* Bytes of memory that pending nodes read, whoever else refers to it. */
extern NPY_NO_EXPORT npy_intp npy_deferred_read_bytes;
/*
 * Bytes of the memory behind an operand if nothing but pending nodes keeps it
 * alive, else 0; also 0 when this visit has met the memory before.
 */
NPY_NO_EXPORT npy_intp
npy_deferred_held_bytes(PyArrayObject *operand, npy_uint64 visit);
/* Sum of that over all memory. */
NPY_NO_EXPORT npy_intp
npy_deferred_total_held_bytes(void);
/* Whether pending nodes read memory in which nobody sees unasked writes. */
NPY_NO_EXPORT int
npy_deferred_reads_unprotected(void);

/* ---- node.c: nodes and the pending list ---- */

/*
 * New node for a call, with references to everything it needs but no array:
 * nothing is counted or pending yet.  `errstate` may be NULL, when it is looked up.
 * NULL with an exception set.
 */
NPY_NO_EXPORT npy_deferred_node *
npy_deferred_node_new(PyUFuncObject *ufunc, PyArrayMethodObject *method,
                      PyArray_Descr *const descrs[], PyArrayObject *const op[],
                      NPY_ORDER order, int errmask, PyObject *errstate);
/* Make `array` the deferred array of the node.  Steals the node on success. */
NPY_NO_EXPORT int
npy_deferred_node_attach(npy_deferred_node *node, PyArrayObject *array);
NPY_NO_EXPORT void
npy_deferred_node_incref(npy_deferred_node *node);
NPY_NO_EXPORT void
npy_deferred_node_decref(npy_deferred_node *node);
/* A scope that begins now: new reference, or NULL with an exception set. */
NPY_NO_EXPORT PyObject *
npy_deferred_begin_scope(void);
/* Calculate what is pending of a scope, as npy_deferred_calculate_all does. */
NPY_NO_EXPORT int
npy_deferred_calculate_scope(PyObject *scope);
/*
 * Calculate with `calculate` everything pending if some of it reads memory in which
 * nobody sees unasked writes.  As npy_deferred_calculate_all.
 */
NPY_NO_EXPORT int
npy_deferred_calculate_readers(int (*calculate)(PyArrayObject *));
/*
 * Of two deferred arrays of the same layout: `array` stands for what `result` did from
 * here on, and the other way round, for those that read `array`, too.  Returns 1, or
 * 0 when they are not deferred any more, or nothing reads `array`.
 */
NPY_NO_EXPORT int
npy_deferred_exchange(PyArrayObject *array, PyArrayObject *result);
/* Steals `values`: `array` is regular from here on. */
NPY_NO_EXPORT void
npy_deferred_commit(PyArrayObject *array, void *values);
/*
 * Calculate old pending arrays when, all together, they keep more memory alive
 * than npy_deferred_memory_limit.  An array that raises stays as it is.
 * Returns 0, or -1 with an exception that is not of the calculation's making.
 */
NPY_NO_EXPORT int
npy_deferred_limit_total_memory(void);
/*
 * Call for every node: now and then calls the following, as counting memory
 * takes time when many nodes are pending.  Returns 0 or -1.
 */
static inline int
npy_deferred_watch_total_memory(void)
{
    static npy_intp waited = 0;
    if (npy_deferred_read_bytes <= npy_deferred_memory_limit ||
        ++waited <= npy_deferred_npending / 8) {
        return 0;
    }
    waited = 0;
    return npy_deferred_limit_total_memory();
}
/*
 * Calculate what depends on memory that `owner` owns, newest first, each by
 * `calculate`.  Returns 0, or -1 with the first exception that was set.
 */
NPY_NO_EXPORT int
npy_deferred_flush_dependents(PyArrayObject *owner, int (*calculate)(PyArrayObject *));
/* A number no traversal has had before, for node->visited. */
NPY_NO_EXPORT npy_uint64
npy_deferred_new_visit(void);

/* ---- expression.c: what is evaluated together ---- */

/* Every operand counts once; calculating inner nodes adds operands. */
#    define NPY_DEFERRED_ALL_OPERANDS \
        (NPY_DEFERRED_MAX_OPERANDS + NPY_DEFERRED_MAX_NODES)

/* Arrays that are calculated in one sweep. */
#    define NPY_DEFERRED_MAX_SWEEP 8

/*
 * The nodes of an expression, operands before their consumers; the last is the root.
 * Of a sweep over several arrays the values of other nodes are *kept*, too: the last
 * operands are where they go, of the shape and order of the root.
 */
typedef struct {
    int nnodes, noperands;
    int nkept;
    npy_deferred_node *nodes[NPY_DEFERRED_MAX_NODES];
    PyArrayObject *operands[NPY_DEFERRED_ALL_OPERANDS];
    npy_deferred_node *kept[NPY_DEFERRED_MAX_SWEEP];
} npy_deferred_expression;

/* How many operands are read. */
static inline int
npy_deferred_nread(const npy_deferred_expression *expression)
{
    return expression->noperands - expression->nkept;
}

/*
 * Collect the expression behind `root`.  Returns 0, or -1 (no exception) when
 * it exceeds the bounds.  All references are borrowed.
 */
NPY_NO_EXPORT int
npy_deferred_collect(npy_deferred_node *root, npy_deferred_expression *expression);
/* The same of several roots, whose values go to `outs`: those but the last are kept. */
NPY_NO_EXPORT int
npy_deferred_collect_together(npy_deferred_node *const roots[],
                              PyArrayObject *const outs[], int n,
                              npy_deferred_expression *expression);
/*
 * The node in the expression that has the other output of this one's call, or NULL:
 * then nobody there wants it.
 */
NPY_NO_EXPORT npy_deferred_node *
npy_deferred_twin_in(const npy_deferred_expression *expression,
                     const npy_deferred_node *node);
/*
 * Whether a node in the expression has a pending twin that is not: its call would be
 * run again for that, so both are calculated first, in one run.
 */
NPY_NO_EXPORT int
npy_deferred_leaves_twin(const npy_deferred_expression *expression,
                         const npy_deferred_node *node);
/* Whether a node from the `first` on has not as many elements as that. */
NPY_NO_EXPORT int
npy_deferred_has_other_size(const npy_deferred_expression *expression, int first,
                            npy_intp size);
/* Which of the operands it is: one of them. */
NPY_NO_EXPORT int
npy_deferred_operand_index(const npy_deferred_expression *expression,
                           PyArrayObject *array);
/*
 * Begin an expression of no nodes with what is behind the first root; then, with the
 * same visit, add what is behind another, if it reads something that is read already,
 * or is part of it.  Returns whether it fits; what it is good for is to find that out.
 */
NPY_NO_EXPORT int
npy_deferred_join(npy_deferred_expression *expression, npy_deferred_node *root,
                  npy_uint64 visit);
/*
 * Whether a node fits the bounds, before it becomes pending.  Returns 0 when it
 * does; else its largest deferred operand is calculated, and the node must be
 * made anew: 1, or -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_limit_expression(npy_deferred_node *node);

/*
 * As above, when its operands' expressions keep too much memory alive for a
 * result of this size.
 */
NPY_NO_EXPORT int
npy_deferred_limit_memory(npy_deferred_node *node, npy_intp nbytes);

/* ---- evaluate.c: how it gets its values ---- */

/* What the array is that an expression is evaluated into. */
typedef enum {
    NPY_DEFERRED_FRESH,  /* new memory: it overlaps no operand */
    NPY_DEFERRED_OUT,    /* the last operation's `out=` */
    NPY_DEFERRED_ASSIGN, /* a copy of the result goes there */
} npy_deferred_target;

struct npy_deferred_errors;
/*
 * Evaluate `root` into `out`, an array of its shape.  Returns 0, and `errors`
 * has what is to be reported, or -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_evaluate(npy_deferred_node *root, PyArrayObject *out,
                      npy_deferred_target target, struct npy_deferred_errors *errors);
/*
 * Evaluate several pending nodes into arrays of one shape and order, new memory, in
 * one sweep.  Returns 0, and `errors` has what is to be reported; 1 when it cannot be
 * done so, or code has run that may have calculated some; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_evaluate_together(npy_deferred_node *const roots[],
                               PyArrayObject *const outs[], int n,
                               struct npy_deferred_errors *errors);
/*
 * Whether the operations of the expression may be left to be run together
 * with one that writes into an array others see: none may raise before.
 */
NPY_NO_EXPORT int
npy_deferred_can_fuse_out(npy_deferred_node *root);

typedef struct npy_deferred_consumer npy_deferred_consumer;
/*
 * Evaluate a pending array for a consumer, which has its values piece by piece
 * (see evaluator.c) and stores them nowhere; the array stays pending.
 * Returns 0, and `errors` has what is to be reported; 1 when it is not to be had
 * like this, and the array is to be calculated; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_feed(PyArrayObject *array, npy_deferred_consumer *consumer,
                  struct npy_deferred_errors *errors);

/* ---- walk.c: how memory is gone through ---- */

/* How many elements loops get: `length` at a time, of `total`, and the rest; then
 * again, if that is not the whole array. */
typedef struct {
    npy_intp length, total;
} npy_deferred_runs;

/* One walk over all operands of an expression and its result. */
typedef struct {
    const npy_deferred_expression *expression;
    PyArrayObject *out; /* borrowed */
    NpyIter *iter;      /* owned; NULL: directly */
    int rows;           /* whether the iterator only tells where the rows are */
    int packed;         /* or what is copied: see pack.c */
    npy_bool packs[NPY_DEFERRED_MAX_OPERANDS];       /* which operands are */
    npy_bool repeats[NPY_DEFERRED_MAX_OPERANDS];     /* the same row throughout */
    npy_intp panel;                                  /* elements that are together */
    npy_intp row;                                    /* of a packed walk: elements */
    npy_intp strides[NPY_DEFERRED_ALL_OPERANDS + 1]; /* operands, result */
    npy_deferred_runs runs;
    npy_intp nbytes; /* of all that is read and written */
    int fresh;       /* nobody sees what is written before all of it is */
    int overlaps;    /* some operand is where the result is written */
} npy_deferred_walk;

/*
 * Returns 1; 0 when there are too many operands to walk together; -1 with an
 * exception set.  After 1, the walk must be closed, which returns 0 or -1, and
 * leaves `out` alone unless the result is `written`.
 */
NPY_NO_EXPORT int
npy_deferred_walk_open(npy_deferred_walk *walk,
                       const npy_deferred_expression *expression, PyArrayObject *out,
                       npy_deferred_target target, int may_pack);
NPY_NO_EXPORT int
npy_deferred_walk_close(npy_deferred_walk *walk, int written);

/* A place in a walk by rows; needs no GIL. */
typedef struct {
    int nop, naxes;
    char *data[NPY_DEFERRED_MAX_OPERANDS + 1]; /* where the row begins */
    npy_intp at[NPY_MAXDIMS], shape[NPY_MAXDIMS];
    const npy_intp *strides[NPY_MAXDIMS]; /* borrowed from the walk */
} npy_deferred_rows;

NPY_NO_EXPORT void
npy_deferred_rows_begin(npy_deferred_rows *rows, const npy_deferred_walk *walk,
                        npy_intp row);
/* After the last one comes the first. */
NPY_NO_EXPORT void
npy_deferred_rows_next(npy_deferred_rows *rows);
/* Rows of so many elements, from the `row`th on, of a walk without iterator, which has
 * all side by side; `strides` is room for those of the rows. */
NPY_NO_EXPORT void
npy_deferred_rows_divide(npy_deferred_rows *rows, const npy_deferred_walk *walk,
                         npy_intp length, npy_intp row, npy_intp strides[]);
/* Over `n` rows, no more than there are on the innermost axis. */
NPY_NO_EXPORT void
npy_deferred_rows_skip(npy_deferred_rows *rows, npy_intp n);
/* Elements of a row that nothing packs, and bytes from one to the next where the
 * operand lies. */
NPY_NO_EXPORT npy_intp
npy_deferred_row_length(const npy_deferred_walk *walk);
NPY_NO_EXPORT npy_intp
npy_deferred_row_stride(const npy_deferred_walk *walk, int operand);

/* ---- pack.c: operands that are copied on the way ---- */

/*
 * Have what lies otherwise than the result of an open walk packed, where that pays;
 * returns whether it does.
 */
NPY_NO_EXPORT int
npy_deferred_walk_pack(npy_deferred_walk *walk, int rows_are_short);
/* Copy so many elements of an operand, from the start-th of the walk on; no GIL. */
NPY_NO_EXPORT void
npy_deferred_pack(const npy_deferred_walk *walk, int operand, npy_intp start,
                  npy_intp count, char *to);

/* Whether the result is gone through as it lies in memory, without gaps. */
NPY_NO_EXPORT int
npy_deferred_walk_in_order(const npy_deferred_walk *walk);
/*
 * The strides that the node's loop would see in eager NumPy, and how many
 * elements; `out` is its `out=` or NULL, which it is where there are two outputs.
 * Returns 0 or -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_eager_strides(npy_deferred_node *node, PyArrayObject *out,
                           npy_intp strides[], npy_deferred_runs *runs);
/*
 * Whether eager NumPy copies an input to make a trivial loop possible.  For the
 * inputs in their order; `*trivial` says whether it still is, at first 1.
 */
NPY_NO_EXPORT int
npy_deferred_copied_by_eager(PyArrayObject *input, PyArray_Descr *descr,
                             npy_intp buffersize, int *trivial);
/* np.getbufsize(), which eager NumPy's choice of what to copy depends on. */
NPY_NO_EXPORT npy_intp
npy_deferred_buffer_size(void);
/* New reference to an array of the layout of `like` over foreign memory. */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_array_over(PyArrayObject *like, void *memory);
/* New reference to a 0-d array with a captured scalar. */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_constant_array(npy_deferred_node *node, int i);

/* ---- plan.c: an expression as a list of steps ---- */

typedef enum {
    NPY_DEFERRED_VALUE_OPERAND,  /* an array that is read */
    NPY_DEFERRED_VALUE_CONSTANT, /* a captured scalar */
    NPY_DEFERRED_VALUE_SLOT,     /* scratch for one block */
    NPY_DEFERRED_VALUE_KEPT,     /* another result of a sweep */
    NPY_DEFERRED_VALUE_OUT,      /* the result */
} npy_deferred_value_kind;

/* What steps read and write. */
typedef struct {
    npy_deferred_value_kind kind;
    PyArray_Descr *descr; /* borrowed from a node or an operand */
    int source;           /* slot filled by a cast or copy: of which value */
    int constant;         /* slot of one element that serves a whole block */
    int operand;          /* index, of an operand or kept, or in a constant's node */
    int position;         /* of the constant's node, in the expression */
    int aligned;
    int slot;     /* index, when it is a slot */
    int last_use; /* the last step that reads it, or the one that this one joins */
    int writer;   /* the step that writes it, or -1 */
    int nreaders; /* how often steps read it */
    char *data;   /* where the current block starts */
    npy_intp stride;
} npy_deferred_value;

/* One loop over a block: a node's operation, or a cast for it. */
typedef struct {
    npy_deferred_node *node; /* borrowed; NULL: the cast of an assignment */
    int position;            /* the node's, in the expression */
    int is_cast;
    int copied; /* of a cast: see npy_deferred_error */
    int leads;  /* a cast whose errors the operation after it may clear */
    /* Where NaNs meet in a block of so many elements or fewer, the other one may
     * be kept than in eager NumPy. */
    npy_intp doubtful;
    int nin, nargs;
    int args[NPY_DEFERRED_MAX_NARGS]; /* values: in..., out... */
    /* Set by tiles.c: what it is in a program, and which step's program that is. */
    npy_deferred_tile_type tile_type;
    int tile_operation;
    int takes_masks;            /* instead of numbers */
    int joins;                  /* the only reader of the result, or -1 */
    int banks, njoined, nreads; /* of it and those that join it; with what is kept */
    int is_idle;                /* a copy that programs do without */
    /* From here on set by run_state.c, for the strides at hand. */
    int bound;
    int status;  /* NPY_FPE_* that it raised */
    int checked; /* whether eager NumPy looks at the status after this loop */
    PyArrayMethod_StridedLoop *loop;
    PyArrayMethod_Context *context;
    NpyAuxData *auxdata;
    PyArrayMethod_Context own_context;
    NPY_cast_info cast;
    npy_intp strides[NPY_DEFERRED_MAX_NARGS];
} npy_deferred_step;

/* The code of a program that ends with another instruction, by which it reduces. */
typedef struct {
    int instruction; /* 0: none has been tried */
    npy_deferred_tile_code *code;
    npy_deferred_tile_code *rows_code; /* over rows, where they join or are summed */
} npy_deferred_reducing;
/* As many as there are for one type, where what is reduced has that type: sums and
 * extremes that go into one or into others. */
#    define NPY_DEFERRED_REDUCINGS 6

/* What runs at a time: a tile program for a step and those that join it, or a step. */
typedef struct {
    int step;
    int reads_status;            /* before it, as it may clear what others raised */
    npy_deferred_tile_type type; /* of a part; NONE: no program */
    int parts;                   /* of an element: see tiles.h */
    int code, args, nargs;       /* where the plan has the program */
    npy_deferred_tile_machine *machine;   /* set by run_state.c */
    npy_deferred_tile_code *machine_code; /* owned by the plan, no copy; may be NULL */
    npy_deferred_tile_streams streams;    /* how that stores */
    int was_compiled;                     /* or it was tried */
    /* As machine_code, over rows, whose operands need not be packed. */
    npy_deferred_tile_code *rows_code;
    int rows_were_compiled; /* or it was tried */
    npy_deferred_reducing reducing[NPY_DEFERRED_REDUCINGS];
} npy_deferred_unit;

/* Scratch memory for values, one after the other. */
typedef struct {
    npy_intp elsize;
    int last_use; /* of the value that is in it */
    int in_units; /* whether a unit writes it */
    char *data;   /* set by run_state.c, for what runs: units or steps */
} npy_deferred_slot;

/* What a plan is kept under (plan_cache.c). */
typedef struct npy_deferred_plan_key npy_deferred_plan_key;

/* Two ways to the same result: all steps one after the other, or all units. */
typedef struct {
    int nvalues, nsteps, nslots, nunits;
    int nallocated; /* steps that there is memory for */
    int is_copy;    /* which owns no machine code */
    npy_intp work;  /* elements, times steps, that it has been run for */
    int out;        /* the value that is the result */
    npy_deferred_value *values;
    npy_deferred_step *steps;
    npy_deferred_slot *slots;
    npy_deferred_unit *units;
    npy_deferred_tile_instruction *tile_code;
    npy_deferred_tile_arg *tile_args;
    npy_deferred_plan_key *key; /* owned; NULL: it is not kept */
} npy_deferred_plan;

/* Whether all of it is programs. */
static inline int
npy_deferred_is_arithmetic(const npy_deferred_plan *plan)
{
    int i = 0;
    while (i < plan->nunits && plan->units[i].type != NPY_DEFERRED_TILE_NONE) {
        i++;
    }
    return i == plan->nunits;
}

/*
 * Compile for a walk.  Returns 0; 1 when some operation would see memory other
 * than in eager NumPy, `*plan` is NULL then; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_plan_new(const npy_deferred_walk *walk, npy_deferred_target target,
                      npy_deferred_plan **plan);
/* Not bound to loops: for another thread; or NULL. */
NPY_NO_EXPORT npy_deferred_plan *
npy_deferred_plan_copy(const npy_deferred_plan *plan, const npy_deferred_walk *walk);
NPY_NO_EXPORT void
npy_deferred_plan_free(npy_deferred_plan *plan);
/* Let go what run_state.c has bound a step to, if it has. */
NPY_NO_EXPORT void
npy_deferred_step_unbind(npy_deferred_step *step);

/* ---- plan_cache.c: plans that are kept ---- */

/*
 * Open a walk for which there is a plan, and get that: one that was kept, if there
 * is one.  Returns 0; 1 when there is none, or -1 with an exception set, and no walk
 * is open then.
 */
NPY_NO_EXPORT int
npy_deferred_plan_get(npy_deferred_walk *walk,
                      const npy_deferred_expression *expression, PyArrayObject *out,
                      npy_deferred_target target, npy_deferred_plan **plan);
/* Free the machine code of all plans that are kept.  Returns whether there was some. */
NPY_NO_EXPORT int
npy_deferred_forget_code(void);
/* Keep a plan, or free it. */
NPY_NO_EXPORT void
npy_deferred_plan_release(npy_deferred_plan *plan);

/* ---- tile_operations.c: which operations tile programs have ---- */

/* Find the ufuncs of the module.  Returns 0, or -1 with an exception set. */
NPY_NO_EXPORT int
npy_deferred_tile_operations_init(PyObject *module);
/* What a program would work on for values of a type. */
NPY_NO_EXPORT npy_deferred_tile_type
npy_deferred_tile_type_of(const PyArray_Descr *descr);
/* Which operation of programs it is, for the type of its first operand, or -1. */
NPY_NO_EXPORT int
npy_deferred_tile_operation_of(const npy_deferred_node *node);
/* Whether it takes much longer than to store what it gives, and read that again. */
NPY_NO_EXPORT int
npy_deferred_is_function(const npy_deferred_node *node);
/* Whether all loops of an operation, whose first operand has that type, give the same
 * whatever strides they have, but for which of two NaNs it is. */
NPY_NO_EXPORT int
npy_deferred_is_exact(const PyUFuncObject *ufunc, const PyArray_Descr *descr);
/* Whether neither the operation nor those that it waits for can raise anything, or do
 * it again where nothing was raised that an error state wanted to know. */
NPY_NO_EXPORT int
npy_deferred_is_quiet(npy_deferred_node *node);

/* ---- tiles.c: steps that run together in registers ---- */

/* Put the plan's steps together to units. */
NPY_NO_EXPORT void
npy_deferred_make_units(npy_deferred_plan *plan, const npy_deferred_walk *walk);
/* What runs programs on this processor, or NULL. */
NPY_NO_EXPORT npy_deferred_tile_machine *
npy_deferred_tile_machine_for(npy_deferred_tile_type type);
/* NPY_DEFERRED_TILES_*, or 0: there is none. */
NPY_NO_EXPORT int
npy_deferred_tile_machine_traits(void);
/* What reduces on this processor as NumPy's loops do. */
NPY_NO_EXPORT npy_deferred_tile_reducer
npy_deferred_tile_reducer_for(const PyArray_Descr *descr,
                              npy_deferred_tile_reduction what);

/* ---- machine_code.c: tile programs as machine code ---- */

/* Elements, times steps, after which the programs of a plan are compiled. */
extern NPY_NO_EXPORT npy_intp npy_deferred_code_worth;
/* Elements of rows that code goes over: longer ones are blocks of their own. */
#    define NPY_DEFERRED_MAX_ROW 4096
/*
 * New pages with the code, which are to be freed; NULL: it cannot be had, or has an
 * instruction that is not known.  No exception is set.  `in_rows`: how arguments lie in
 * rows (tiles.h), which the code goes over; or NULL.
 */
NPY_NO_EXPORT npy_deferred_tile_code *
npy_deferred_code_new(npy_deferred_tile_type type, int parts,
                      const npy_deferred_tile_instruction *code,
                      const npy_deferred_tile_arg *args, int nargs,
                      const npy_intp strides[], npy_deferred_tile_streams streams,
                      const npy_uint8 in_rows[]);
/* What there is for this instruction, or NULL. */
NPY_NO_EXPORT const npy_deferred_reducing *
npy_deferred_find_reducing(const npy_deferred_unit *unit, int instruction);
/* Free all code of a unit, which may be compiled again.  Returns whether it had any. */
NPY_NO_EXPORT int
npy_deferred_unit_forget_code(npy_deferred_unit *unit);
/*
 * Compile the programs of a plan that is about to be run, once it is worth it; the only
 * one also for a reduction by this instruction, or -1.
 */
NPY_NO_EXPORT void
npy_deferred_compile(npy_deferred_plan *plan, const npy_deferred_walk *walk,
                     int streams, int reducing);
/* Whether code that stores like this may run there. */
static inline int
npy_deferred_is_aligned_for(const void *address, npy_deferred_tile_streams streams)
{
    npy_uintp unit = streams == NPY_DEFERRED_TILE_STREAM_VECTORS  ? 32
                     : streams == NPY_DEFERRED_TILE_STREAM_HALVES ? 16
                                                                  : 1;
    return (npy_uintp)address % unit == 0;
}

/* ---- execute.c, run_state.c, execute_threads.c, evaluator.c: run a plan ---- */

/*
 * Blocks are multiples of it, but the last, which is no shorter if it is not
 * the only one: what a loop does at its end, or when it has few elements, may
 * give another NaN, and must come where it does in eager NumPy.
 */
#    define NPY_DEFERRED_BLOCK_UNIT 64

#    define NPY_DEFERRED_INTERRUPTED 2
/*
 * Returns 0; 1 when it met NaNs that only eager NumPy itself can tell what
 * becomes of; INTERRUPTED when the handlers of signals are to be called, and
 * nobody has seen what was written; -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_execute(npy_deferred_plan *plan, npy_deferred_walk *walk);
/* Elements of a block; NPY_MAX_INTP when there is nothing to keep in the cache. */
NPY_NO_EXPORT npy_intp
npy_deferred_block_length(const npy_deferred_plan *plan, const npy_deferred_walk *walk);
/* How many loops run for a block: steps, or what is put together from them. */
NPY_NO_EXPORT int
npy_deferred_nloops(const npy_deferred_plan *plan, const npy_deferred_walk *walk);
/* How many threads may share it. */
NPY_NO_EXPORT int
npy_deferred_threads_for(const npy_deferred_plan *plan, const npy_deferred_walk *walk);

/* Who has the result instead of an array; more follows in the consumer's own. */
struct npy_deferred_consumer {
    /* Returns as npy_deferred_execute; called again after an interrupt. */
    int (*consume)(npy_deferred_consumer *consumer, npy_deferred_plan *plan,
                   npy_deferred_walk *walk);
};

/* Of several that evaluate pieces of a walk that is in order, each in its thread. */
typedef struct npy_deferred_evaluator npy_deferred_evaluator;
/* `n` of them, or NULL with an exception set.  They must be freed before the plan,
 * which no others can be made for.  `reducing`: see npy_deferred_compile. */
NPY_NO_EXPORT npy_deferred_evaluator *
npy_deferred_evaluators_new(npy_deferred_plan *plan, npy_deferred_walk *walk, int n,
                            int reducing);
/* The plan gets to know what was raised. */
NPY_NO_EXPORT void
npy_deferred_evaluators_free(npy_deferred_evaluator *evaluators, int n);
NPY_NO_EXPORT npy_deferred_evaluator *
npy_deferred_evaluator_of(npy_deferred_evaluator *evaluators, int thread);
/*
 * Put `count` elements from the `start`th on, as they follow in memory, into
 * other memory.  Returns as npy_deferred_execute.  Needs no GIL; starts with the
 * floating-point status clear.
 */
NPY_NO_EXPORT int
npy_deferred_evaluate_piece(npy_deferred_evaluator *evaluator, npy_intp start,
                            npy_intp count, char *into);
/*
 * Reduce, by code, `length` elements of each of `nrows` rows, which have `row`
 * elements, the first of them from the `start`th on: those that join go into as many
 * elements at `into`, of SUM_EIGHTHS into the sums of `leaves`, `nsums` for each row.
 * Returns whether there was something to tell of, as the program does: the NaNs that
 * sums become are for who reads them.
 */
NPY_NO_EXPORT int
npy_deferred_evaluator_reduce_rows(npy_deferred_evaluator *evaluator, npy_intp start,
                                   npy_intp row, npy_intp length, npy_intp nrows,
                                   char *into, const npy_deferred_tile_leaf leaves[],
                                   npy_intp nsums);
/* Whether that can be, for eight elements and more of rows of that length. */
NPY_NO_EXPORT int
npy_deferred_evaluator_reduces_rows(const npy_deferred_evaluator *evaluator,
                                    npy_intp row);
/* A plan that is one tile program, and where that finds its arguments. */
typedef struct {
    const npy_deferred_walk *walk; /* borrowed */
    npy_deferred_tile_machine *machine;
    npy_deferred_tile_type type; /* of the machine */
    npy_deferred_tile_program program;
    npy_deferred_tile_code *reducing_code; /* borrowed; may be NULL */
    npy_intp strides[NPY_DEFERRED_TILE_MAX_ARGS];
    char *data[NPY_DEFERRED_TILE_MAX_ARGS];
    int operands[NPY_DEFERRED_TILE_MAX_ARGS]; /* of the walk, or -1 */
    char *begins[NPY_DEFERRED_TILE_MAX_ARGS]; /* of these, where they begin */
    int out;                                  /* the argument that is written */
    int wanted; /* NPY_FPE_* that some error state wants to know of */
    npy_deferred_rows rows;
    npy_intp row; /* of a walk by rows: where `rows` is */
} npy_deferred_lone_program;
/*
 * Returns whether the plan is one.  Who runs it looks at the floating-point status
 * himself, and at what became of NaNs.
 */
NPY_NO_EXPORT int
npy_deferred_evaluator_program(const npy_deferred_evaluator *evaluator,
                               npy_deferred_lone_program *lone);
/* Have it run on the elements from `start` on.  Returns how many lie there together. */
NPY_NO_EXPORT npy_intp
npy_deferred_program_seek(npy_deferred_lone_program *lone, npy_intp start);
/* Call now and then, after so many elements.  Returns 0, or INTERRUPTED. */
NPY_NO_EXPORT int
npy_deferred_evaluator_look(npy_deferred_evaluator *evaluator, npy_intp count);
/*
 * Pieces begin where loops do the same as in the whole walk: the last such place
 * up to `position`, and how far from there the next is, which is no more than
 * `wanted`, at least MIN_PIECE.  What comes next may be too near to the end to go on
 * from there: then the place before it is a multiple of BLOCK_UNIT.
 */
#    define NPY_DEFERRED_MIN_PIECE (4 * NPY_DEFERRED_BLOCK_UNIT)
NPY_NO_EXPORT npy_intp
npy_deferred_piece_start(const npy_deferred_walk *walk, npy_intp position);
NPY_NO_EXPORT npy_intp
npy_deferred_piece_length(const npy_deferred_walk *walk, npy_intp start,
                          npy_intp wanted);

/* ---- threads.c: workers that share a calculation ---- */

/*
 * Call `run(argument, thread)` in this thread, and in up to `nthreads` - 1 others
 * with other numbers below `nthreads`, at the same time; whichever come may take
 * parts of the work until nothing is left.  Returns when all have returned.  `run`
 * must not use Python.
 */
NPY_NO_EXPORT void
npy_deferred_share(void (*run)(void *argument, int thread), void *argument,
                   int nthreads);
/* Whether that is under way, so that what workers read must stay where it is. */
NPY_NO_EXPORT int
npy_deferred_is_sharing(void);
/* Before a fork; the next job starts them again.  While there is no job. */
NPY_NO_EXPORT void
npy_deferred_end_workers(void);
/* Whether the loops of a ufunc are NumPy's, which need no Python for numbers. */
NPY_NO_EXPORT int
npy_deferred_is_own_ufunc(const PyUFuncObject *ufunc);
NPY_NO_EXPORT void
npy_deferred_threads_init(PyObject *module);
NPY_NO_EXPORT int
npy_deferred_get_num_threads(void);
NPY_NO_EXPORT void
npy_deferred_set_num_threads(npy_intp n);

/* ---- report.c: floating-point errors ---- */

typedef struct {
    npy_deferred_node *node; /* owned; NULL: a cast on assignment */
    /* 1 + the input when eager NumPy casts and reports that by itself; else 0. */
    int copied;
    int errmask;
    PyObject *errfunc; /* owned */
    int status;        /* NPY_FPE_* */
} npy_deferred_error;

/* An operation and two inputs each; what is beyond joins what is before. */
#    define NPY_DEFERRED_MAX_ERRORS (3 * NPY_DEFERRED_MAX_NODES + 1)
/* The NPY_FPE_* of one report; node->reported has one such group per `copied`. */
#    define NPY_DEFERRED_FPE_BITS 4

typedef struct npy_deferred_errors {
    int n;
    npy_deferred_error items[NPY_DEFERRED_MAX_ERRORS];
} npy_deferred_errors;

/*
 * Warn, call, print, log or raise, oldest operation first, and clear `errors`.
 * Returns 0, or -1 with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_report(npy_deferred_errors *errors);
NPY_NO_EXPORT void
npy_deferred_errors_clear(npy_deferred_errors *errors);
/* Whether errors are reported at all.  Returns what it was. */
NPY_NO_EXPORT int
npy_deferred_set_reporting(int report);
/* The error state of this context, a capsule: new reference, or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_errstate(void);
/* Its function or object of seterrcall: new reference, or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_errfunc(PyObject *errstate, int *errmask);
/* Whether this mask and filters of warnings can make an error an exception. */
NPY_NO_EXPORT int
npy_deferred_mask_may_raise(int errmask, PyObject *filters);
/* The NPY_FPE_* that an error mask does not ignore. */
NPY_NO_EXPORT int
npy_deferred_wanted_status(int errmask);

/* ---- habits.c: what became of the results that a line of Python wrote ---- */

/* Whether there are any.  Written by state.c. */
extern NPY_NO_EXPORT int npy_deferred_habits_are_kept;
/* Results of fewer bytes may run at once. */
#    define NPY_DEFERRED_HABIT_BYTES (256 << 10)
/* A number for the line that is being run; 0: there is none, or no habits. */
NPY_NO_EXPORT npy_uint32
npy_deferred_line_here(void);
/* Whether its results have been calculated by themselves, each in a row; now and then
 * it says no, so that one is deferred again. */
NPY_NO_EXPORT int
npy_deferred_line_is_read_alone(npy_uint32 line);
/* Another result of the line, which is not 0, was calculated by itself, or not. */
NPY_NO_EXPORT void
npy_deferred_line_note(npy_uint32 line, int alone);
/* An array was computed again, as it was not stored; `is_cheap`: by arithmetic. */
NPY_NO_EXPORT void
npy_deferred_note_repeated(const npy_deferred_node *node, int is_cheap);
/* Whether that was so of its line not long ago, and matters to a part of an expression,
 * or to a reduction. */
NPY_NO_EXPORT int
npy_deferred_is_to_be_stored(const npy_deferred_node *node, int is_part);

/* ---- origin.c: where operations were written ---- */

NPY_NO_EXPORT int
npy_deferred_origin_init(void);
/* Fill an empty origin with the line that is being run. */
NPY_NO_EXPORT void
npy_deferred_origin_set(npy_deferred_origin *origin);
NPY_NO_EXPORT void
npy_deferred_origin_clear(npy_deferred_origin *origin);
/* A RuntimeWarning located there.  Returns 0 or -1 with an exception set. */
NPY_NO_EXPORT int
npy_deferred_origin_warn(const npy_deferred_origin *origin, const char *text);
/* "FILE, line N", or that it is not known: new reference, or NULL. */
NPY_NO_EXPORT PyObject *
npy_deferred_origin_text(const npy_deferred_origin *origin);
/* Add it to the current exception, unless that is raised there. */
NPY_NO_EXPORT void
npy_deferred_origin_note(const npy_deferred_origin *origin, const char *operation);

/* ---- memory.c: guards, and memory for values ---- */

/* Addresses for the data of a deferred array, or NULL: no exception is set. */
NPY_NO_EXPORT void *
npy_deferred_guard_new(npy_intp nbytes);
/* `array`, whose data point to a guard, is pending from now on. */
NPY_NO_EXPORT void
npy_deferred_guard_bind(PyArrayObject *array);
/* Nobody is pending there any more, and values were never published. */
NPY_NO_EXPORT void
npy_deferred_guard_drop(void *guard);
/* An address for arrays that nobody reads or writes. */
NPY_NO_EXPORT void *
npy_deferred_nowhere(void);
/* Private memory for the values of a pending array, or NULL: no exception. */
NPY_NO_EXPORT void *
npy_deferred_memory_new(PyArrayObject *array);
NPY_NO_EXPORT void
npy_deferred_memory_free(void *values);
/*
 * Steals `values` and makes them those of a pending array.  Returns its `data`,
 * to be freed through npy_deferred_handler.  Cannot fail.
 */
NPY_NO_EXPORT void *
npy_deferred_publish(PyArrayObject *array, void *values);
/* Borrowed: what stands for the default handler in mem_handler. */
extern NPY_NO_EXPORT PyObject *npy_deferred_handler;
/* Whether an extension has ever set a handler. */
extern NPY_NO_EXPORT int npy_deferred_other_handlers;
/*
 * Call when an extension has copied `old` into `new_`: it may go on to exchange the
 * memory of the two, and all that says what is there, but their handlers.  Calculates
 * what reads `old`, and sees to it that either may free what it then has.  0 or -1.
 */
NPY_NO_EXPORT int
npy_deferred_before_exchange(PyArrayObject *new_, PyArrayObject *old);
NPY_NO_EXPORT int
npy_deferred_memory_init(void);
/* Bytes of memory kept warm for results, and their limit. */
extern NPY_NO_EXPORT npy_intp npy_deferred_cache_limit;
NPY_NO_EXPORT npy_intp
npy_deferred_cached_bytes(void);
/* Call when the limit was lowered. */
NPY_NO_EXPORT void
npy_deferred_limit_cache(void);

/* Whether an address is one of this file's.  Needs no GIL. */
NPY_NO_EXPORT int
npy_deferred_is_guard(const void *address);
/*
 * The pending array that the address is part of (borrowed), whose values will be
 * published there; or NULL.
 */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_want(const void *address);
/* The other address of the same value, when it has two; else `address`. */
NPY_NO_EXPORT const void *
npy_deferred_other_address(const void *address);
/*
 * See to it that the values of the array, pending no more, are at the address.
 * Returns 0; 1 when it is no array's; -1 when it is, and they cannot be had.  No
 * exception is set.
 */
NPY_NO_EXPORT int
npy_deferred_bring(const void *address);

/* ---- protect.c: writes to the memory of operands that ask nobody ---- */

/* From so many bytes on, memory that pending nodes read is protected. */
extern NPY_NO_EXPORT npy_intp npy_deferred_protect_limit;
/*
 * Protect the memory that a regular array owns; `*protection` is NULL when it is
 * not worth that.  Returns 0, or -1 with a MemoryError.
 */
NPY_NO_EXPORT int
npy_deferred_protect(PyArrayObject *owner, npy_deferred_protection **protection);
/* Take that back, and free it; does nothing for NULL. */
NPY_NO_EXPORT void
npy_deferred_unprotect(npy_deferred_protection *protection);
/* Whether what is not in whole pages is as it was. */
NPY_NO_EXPORT int
npy_deferred_is_intact(const npy_deferred_protection *protection);
/*
 * New reference to an array that owns a copy of the memory as it was, which is
 * at `*data`, aligned alike; or NULL with an exception set.
 */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_protected_copy(const npy_deferred_protection *protection, char **data);
/* Whether a write to this address faults.  Needs no GIL. */
NPY_NO_EXPORT int
npy_deferred_is_protected(const void *address);
/* After a fault: whether it may have been so until just now.  Needs no GIL. */
NPY_NO_EXPORT int
npy_deferred_was_protected(const void *address);
/* Whose memory (borrowed) is protected there, or NULL. */
NPY_NO_EXPORT PyArrayObject *
npy_deferred_protected_owner(const void *address);
/* Let a write happen, whatever becomes of those who read there.  Needs no GIL. */
NPY_NO_EXPORT void
npy_deferred_open_range(const void *address);

/* ---- gil.c: large calculations run without the GIL ---- */

/* Elements, times steps, from which on the GIL is given up. */
extern NPY_NO_EXPORT npy_intp npy_deferred_gil_worth;
/* Nonzero while who calculates may rely on the GIL.  Guarded by the GIL. */
extern NPY_NO_EXPORT int npy_deferred_gil_kept;
/* Whether a calculation runs without the GIL.  Guarded by the GIL. */
extern NPY_NO_EXPORT int npy_deferred_running;
NPY_NO_EXPORT int
npy_deferred_gil_init(void);
/*
 * Give up the GIL for as many elements, times steps, as `work` if that is worth it.
 * What is returned is for npy_deferred_gil_take, which follows in the same thread.
 */
NPY_NO_EXPORT int
npy_deferred_gil_release(npy_intp work);
NPY_NO_EXPORT void
npy_deferred_gil_take(int released);
/* Whether Ctrl-C was pressed; the interpreter is told again.  With or without GIL. */
NPY_NO_EXPORT int
npy_deferred_gil_interrupted(void);
NPY_NO_EXPORT void
npy_deferred_wait_until_done(void);

/*
 * Let a calculation end that runs without the GIL, before what it is about changes.
 * Returns whether there was one: what was known of deferred arrays need not hold then.
 */
static inline int
npy_deferred_wait(void)
{
    if (NPY_LIKELY(!npy_deferred_running)) {
        return 0;
    }
    npy_deferred_wait_until_done();
    return 1;
}

/* ---- neighbours.c: libraries that write to arrays without asking ---- */

/* Whether a library may have come that nobody has looked at. */
extern NPY_NO_EXPORT int npy_deferred_neighbours_came;
/* Returns 0, or -1 with an exception set, and is to be asked again. */
NPY_NO_EXPORT int
npy_deferred_look_at_neighbours(void);
/* Smaller results are not deferred where all operands are protected for a library. */
extern NPY_NO_EXPORT npy_intp npy_deferred_min_protected_bytes;
/* What is protected has been chosen, whatever libraries come. */
NPY_NO_EXPORT void
npy_deferred_choose_protection(void);

/* ---- touch.c: values are needed, and nobody can be told of an error ---- */

/*
 * Have the values at an address of a guard, or let a protected one be written to.
 * Returns 0, 1 when it is no array's, which is a real fault.  Needs no GIL; ends
 * the process when it cannot.
 */
NPY_NO_EXPORT int
npy_deferred_touched(const void *address);
/* PyArray_DATA in extensions: NULL with an exception set.  Needs no GIL. */
NPY_NO_EXPORT void *
npy_deferred_data_for_extension(PyArrayObject *arr);
/*
 * Compiled code may be about to write to operands without asking: calculate what reads
 * such memory, but what raises an error.  Where there is no memory for it, that is
 * raised later, when the main thread runs Python code.
 */
NPY_NO_EXPORT void
npy_deferred_before_unseen_writes(void);
/* Before a fork, which would warn of other threads; the next request starts it again.
 */
NPY_NO_EXPORT void
npy_deferred_end_server(void);
/* Calculate what threads without the GIL wait for.  Needs the GIL. */
NPY_NO_EXPORT void
npy_deferred_serve_requests(void);
/* Whether this thread holds the GIL; asked in signal handlers, too. */
NPY_NO_EXPORT int
npy_deferred_holds_gil(void);
/* Print the C stack; call `prepare` before the first time in a handler. */
NPY_NO_EXPORT void
npy_deferred_prepare_report(void);
NPY_NO_EXPORT void
npy_deferred_report_stack(void);

/* ---- guard.c: the fault handler ---- */

/* Call when something was deferred: puts the handler in place, and looks now
 * and then whether it is still there. */
NPY_NO_EXPORT void
npy_deferred_guard_watch(void);
/* Interrupt the thread that holds the GIL to have the requests served. */
NPY_NO_EXPORT void
npy_deferred_ask_gil_holder(void);

/* ---- capture.c ---- */

/*
 * Let the ufunc machinery run the node on `op`, regular arrays, as if it had
 * been called now without deferral.  op[nin + output] is NULL or where the result
 * goes; op[] has room for all outputs, each a new reference afterwards.
 * `*status` gets the floating-point errors.  Returns 0 or -1: exception set.
 */
NPY_NO_EXPORT int
npy_deferred_call_eagerly(npy_deferred_node *node, PyArrayObject *op[], int *status);

/* ---- calculate.c ---- */

/* As npy_deferred_calculate, of this array and no other. */
NPY_NO_EXPORT int
npy_deferred_calculate_alone(PyArrayObject *arr);

/* Evaluate into an existing array.  Returns 0, or -1 with an exception set. */
NPY_NO_EXPORT int
npy_deferred_evaluate_into(npy_deferred_node *node, PyArrayObject *out,
                           npy_deferred_target target);
/*
 * Copy `src` into `dst` as PyArray_CopyInto does.  A deferred `src` stays so the
 * first time that it is evaluated, unless `dst` is memory that it reads.
 */
NPY_NO_EXPORT int
npy_deferred_assign_keeping(PyArrayObject *dst, PyArrayObject *src);

/* ---- sweep.c: several arrays together ---- */

/* How many others are looked at for one that is calculated. */
#    define NPY_DEFERRED_SWEEP_LOOKS 16
/*
 * As npy_deferred_calculate, of one of several arrays that are to be calculated: what
 * pays to be calculated with it, of `n` others, which may be regular, is regular then.
 * That is none that may raise or has something to report which this one has not.  The
 * others are borrowed: nothing may have run since npy_deferred_wait.  The other output
 * of its call need not be among them: where that is pending, both come out of one run.
 */
NPY_NO_EXPORT int
npy_deferred_calculate_with(PyArrayObject *array, PyArrayObject *const others[], int n);
/* Whether it is worth while to look at one of these: it looks alike, and is not only
 * an operand of others. */
NPY_NO_EXPORT int
npy_deferred_may_sweep(PyArrayObject *array, PyArrayObject *other);

/* ---- where.c: np.where ---- */

NPY_NO_EXPORT int
npy_deferred_where_init(void);
/* Whether it stands for np.where of three arguments. */
NPY_NO_EXPORT int
npy_deferred_is_where(const PyUFuncObject *ufunc);
/*
 * Have elements of a deferred array replaced, where a mask is set, without calculating
 * it.  Returns 1 when done; 0 when the caller must go on, and `dst` may be regular; -1
 * with an exception set.
 */
NPY_NO_EXPORT int
npy_deferred_assign_where(PyArrayObject *dst, PyArrayObject *mask, PyArrayObject *src);

/* ---- explain.c ---- */

/* What is pending, and the plan or None, as _explain.py takes it: new reference. */
NPY_NO_EXPORT PyObject *
npy_deferred_explain(PyArrayObject *array);
/* What an expression is whose values go to `result`, for who asks about an array that
 * is one of its results: new reference. */
NPY_NO_EXPORT PyObject *
npy_deferred_describe(const npy_deferred_expression *expression, PyArrayObject *result,
                      PyArrayObject *about);
/* (steps, casts and copies, block or 0, threads, whether directly). */
NPY_NO_EXPORT PyObject *
npy_deferred_describe_plan(const npy_deferred_plan *plan,
                           const npy_deferred_walk *walk);

/* ---- capi.c ---- */

/* Fills the slots of the array API table.  Returns 0 or -1. */
NPY_NO_EXPORT int
npy_deferred_capi_init(PyObject *module);

#endif /* NUMPY_DEFERRED_SRC_DEFERRED_H_ */
