/*
 * The expressions of ../peers/expressions.py, fused by hand: what the hardware
 * gives to who writes one loop for one expression.
 *
 * T is float or double, INTEGER an integer of that size.  Each function has the
 * operands in the order of the table, and fills `out`, which has been used before.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <tgmath.h>

typedef T _Complex complex_t;
typedef const void *const *operands_t;
typedef void limit_function(operands_t in, void *out, const ptrdiff_t *shape);

/*
 * Sharing less than this costs more than it brings.  An `if` that does not name
 * `parallel` would switch vectors off too.
 */
#define SHARED 16384
#define PRAGMA(text) _Pragma(#text)
#define SHARE(size) PRAGMA(omp parallel for if(parallel : (size) >= SHARED))
#define SHARE_SIMD(size) PRAGMA(omp parallel for simd if(parallel : (size) >= SHARED))
#define FUNCTION(name) void f_##name(operands_t in, void *out, const ptrdiff_t *shape)

/* So that the limit is not that of calling C from Python. */
void
limit_repeat(limit_function *function, operands_t in, void *out,
             const ptrdiff_t *shape, long calls)
{
    for (long i = 0; i < calls; i++) {
        function(in, out, shape);
    }
}

/* Of up to five vectors, which C calls V, W, X, Y and Z. */
#define VECTORS(name, OPERAND, RESULT, ...)                               \
    FUNCTION(name)                                                        \
    {                                                                     \
        const OPERAND *A0 = in[0], *A1 = in[1], *A2 = in[2], *A3 = in[3], \
                      *A4 = in[4];                                        \
        RESULT *restrict result = out;                                    \
        SHARE_SIMD(shape[0])                                              \
        for (ptrdiff_t i = 0; i < shape[0]; i++) {                        \
            __VA_ARGS__                                                   \
        }                                                                 \
    }
#define A A0[i]
#define B A1[i]
#define C A2[i]
#define D A3[i]

VECTORS(products, T, T, result[i] = A * B + C * D;)
VECTORS(sum_of_4, T, T, result[i] = A + B + C + D;)
VECTORS(square, T, T, result[i] = A * A - 3 * A + 4;)
VECTORS(linear, T, T, result[i] = 2 * A + 3 * B;)
VECTORS(exp_log_sqrt, T, T, result[i] = exp(-A * A) * log(B) + sqrt(A * B);)
VECTORS(sin_cos, T, T, T p = sin(A); T q = cos(B); result[i] = p * p + q * q;)
VECTORS(horner_10, T, T, T y = 11;
        for (int k = 10; k > 0; k--) y = y * A + k;
        result[i] = y;)
VECTORS(pricing, T, T, T s = A; T k = B; T r = C; T v = D; T t = A4[i];
        T d = (log(s / k) + (r + v * v / 2) * t) / (v * sqrt(t));
        T e = d - v * sqrt(t);
        result[i] = s * (1 + tanh(d)) / 2 - k * exp(-r * t) * (1 + tanh(e)) / 2;)
VECTORS(logic, T, unsigned char, result[i] = ((A > B) & (C < D)) | (A < C);)
VECTORS(integer, INTEGER, INTEGER, result[i] = (A + B) * C - (A - C) * B;)
VECTORS(complex_product, complex_t, complex_t, result[i] = A * B + C;)

FUNCTION(mixed)
{
    const int32_t *a = in[0];
    const double *b = in[1];
    const float *c = in[2];
    double *restrict result = out;
    SHARE_SIMD(shape[0])
    for (ptrdiff_t i = 0; i < shape[0]; i++) {
        result[i] = a[i] * b[i] + c[i];
    }
}

FUNCTION(strided)
{
    const T *a = in[0], *b = in[1], *c = in[2];
    T *restrict result = out;
    SHARE_SIMD(shape[0])
    for (ptrdiff_t i = 0; i < shape[0]; i++) {
        result[i] = a[2 * i] * b[2 * i] + c[2 * i];
    }
}

/* a[k,k,k,10], b[k,k,1,10], c[k,k,k,1] */
FUNCTION(broadcast)
{
    const T *a = in[0], *b = in[1], *c = in[2];
    T *restrict result = out;
    ptrdiff_t k = shape[2];
    SHARE(k * k * k * 10)
    for (ptrdiff_t i = 0; i < k * k; i++) {
        for (ptrdiff_t j = i * k; j < i * k + k; j++) {
            T inverse = 1 / c[j];
#pragma omp simd
            for (ptrdiff_t l = 0; l < 10; l++) {
                T x = a[10 * j + l];
                result[10 * j + l] = 3 * x + b[10 * i + l] - x * inverse;
            }
        }
    }
}

FUNCTION(open_grid)
{
    const T *x = in[0], *y = in[1], *z = in[2];
    T *restrict result = out;
    ptrdiff_t n = shape[0];
    SHARE(n * n * n)
    for (ptrdiff_t i = 0; i < n; i++) {
        for (ptrdiff_t j = 0; j < n; j++) {
            T square = x[i] * x[i] + y[j] * y[j];
            T *restrict line = result + (i * n + j) * n;
#pragma omp simd
            for (ptrdiff_t k = 0; k < n; k++) {
                line[k] = sqrt(square + z[k] * z[k]);
            }
        }
    }
}

FUNCTION(row_column)
{
    const T *x = in[0], *y = in[1];
    T *restrict result = out;
    ptrdiff_t n = shape[1];
    T sines[n];
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; j++) {
        sines[j] = sin(x[j] * x[j]);
    }
    SHARE(n * n)
    for (ptrdiff_t i = 0; i < n; i++) {
        T cosine = cos(y[i] * y[i]);
#pragma omp simd
        for (ptrdiff_t j = 0; j < n; j++) {
            result[i * n + j] = sines[j] + cosine;
        }
    }
}

FUNCTION(projection)
{
    const T *v = in[0];
    T *restrict result = out;
    SHARE_SIMD(3 * shape[0])
    for (ptrdiff_t i = 0; i < shape[0]; i++) {
        T inverse = 1 / v[3 * i + 2];
        result[3 * i] = v[3 * i] * inverse;
        result[3 * i + 1] = v[3 * i + 1] * inverse;
        result[3 * i + 2] = v[3 * i + 2] * inverse;
    }
}

/* In squares that fit the cache, as `b` is read across its lines. */
FUNCTION(transposed)
{
    enum { SIDE = 32 };
    const T *a = in[0], *b = in[1], *c = in[2];
    T *restrict result = out;
    ptrdiff_t n = shape[0];
    SHARE(n * n)
    for (ptrdiff_t top = 0; top < n; top += SIDE) {
        ptrdiff_t bottom = top + SIDE < n ? top + SIDE : n;
        for (ptrdiff_t left = 0; left < n; left += SIDE) {
            ptrdiff_t right = left + SIDE < n ? left + SIDE : n;
            for (ptrdiff_t i = top; i < bottom; i++) {
#pragma omp simd
                for (ptrdiff_t j = left; j < right; j++) {
                    result[i * n + j] = a[i * n + j] * b[j * n + i] + c[i * n + j];
                }
            }
        }
    }
}

/* Operands and result are the inside of grids that are wider by two. */
FUNCTION(stencil)
{
    const T *c = in[0];
    T *restrict result = out;
    ptrdiff_t columns = shape[1], width = columns + 2;
    SHARE(shape[0] * columns)
    for (ptrdiff_t i = 0; i < shape[0]; i++) {
        const T *line = c + i * width;
        T *restrict to = result + i * width;
#pragma omp simd
        for (ptrdiff_t j = 0; j < columns; j++) {
            to[j] = (line[j] + line[j - width] + line[j + width] + line[j - 1] +
                     line[j + 1]) /
                    5;
        }
    }
}

FUNCTION(sum_squares)
{
    const T *a = in[0], *b = in[1];
    ptrdiff_t n = shape[0];
    T sum = 0;
    PRAGMA(omp parallel for simd reduction(+ : sum) if(parallel : n >= SHARED))
    for (ptrdiff_t i = 0; i < n; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    }
    *(T *)out = sum;
}

FUNCTION(max_abs)
{
    const T *a = in[0], *b = in[1];
    ptrdiff_t n = shape[0];
    T most = 0;
    PRAGMA(omp parallel for simd reduction(max : most) if(parallel : n >= SHARED))
    for (ptrdiff_t i = 0; i < n; i++) {
        T distance = fabs(a[i] - b[i]);
        most = distance > most ? distance : most;
    }
    *(T *)out = most;
}

FUNCTION(mean_of_rows)
{
    const T *a = in[0], *b = in[1];
    T *restrict result = out;
    ptrdiff_t n = shape[0];
    SHARE(n * n)
    for (ptrdiff_t i = 0; i < n; i++) {
        T sum = 0;
        PRAGMA(omp simd reduction(+ : sum))
        for (ptrdiff_t j = i * n; j < i * n + n; j++) {
            sum += a[j] * b[j];
        }
        result[i] = sum / n;
    }
}

/* Of columns, in strips that fit the cache. */
FUNCTION(variance)
{
    enum { WIDTH = 64 };
    const T *a = in[0];
    T *restrict result = out;
    ptrdiff_t n = shape[0];
    SHARE(n * n)
    for (ptrdiff_t left = 0; left < n; left += WIDTH) {
        ptrdiff_t width = left + WIDTH < n ? WIDTH : n - left;
        T sum[WIDTH] = {0}, squares[WIDTH] = {0};
        for (ptrdiff_t i = 0; i < n; i++) {
#pragma omp simd
            for (ptrdiff_t j = 0; j < width; j++) {
                sum[j] += a[i * n + left + j];
            }
        }
        for (ptrdiff_t i = 0; i < n; i++) {
#pragma omp simd
            for (ptrdiff_t j = 0; j < width; j++) {
                T distance = a[i * n + left + j] - sum[j] / n;
                squares[j] += distance * distance;
            }
        }
        for (ptrdiff_t j = 0; j < width; j++) {
            result[left + j] = squares[j] / n;
        }
    }
}
