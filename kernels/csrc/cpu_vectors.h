/* Vectors, products of few rows with packed matrices, and LayerNorm: building blocks of prefill, step and sampling.

   For any processor that gcc or clang supports. The order of a sum depends on its own length alone.
*/
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 3 };
#else
enum { LANES = 4, ROWS = 3 };
#endif
enum { PANEL = 32, VECTORS = PANEL / LANES }; /* outputs of a matrix that are adjacent in memory */

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

enum { FP32, BF16, INT8, FP16 };

typedef struct {
    const void *weight; /* [panels][inputs][PANEL] */
    const float *scale; /* scale of each output, for INT8 */
    const float *bias;
    int64_t outputs, inputs, kind;
} Matrix;

typedef struct {
    const float *weight, *bias;
} Norm;

/* --- vectors ------------------------------------------------------------------------------------------------------ */

INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec x) { *(vec *)p = x; }
INLINE vec choose(ints where, vec a, vec b) { return (vec)(((ints)a & where) | ((ints)b & ~where)); }
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec smaller(vec a, vec b) { return choose(a < b, a, b); }

INLINE float total(vec x)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

INLINE float most(vec x)
{
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* e^x to about one unit in the last place: e^r times a power of two, r within half a binary logarithm (Cephes). */
INLINE vec exponential(vec x)
{
    x = larger(smaller(x, splat(88.f)), splat(-87.f));
    const vec rounder = splat(12582912.f); /* adding and subtracting 1.5 * 2^23 rounds to an integer */
    const vec n = (x * 1.44269504f + rounder) - rounder;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * (vec)((__builtin_convertvector(n, ints) + 127) << 23);
}

INLINE vec gelu(vec x) /* the tanh approximation, as x * sigmoid(2u) */
{
    const vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.f + exponential(-2.f * u));
}

/* Sums of adjacent numbers: of a in the lower half of the result, of b in the upper half. */
INLINE vec pairs(vec a, vec b)
{
#if defined(__AVX512F__)
    return PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX__)
    return PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return PICK(a, b, 0, 2, 4, 6) + PICK(a, b, 1, 3, 5, 7);
#endif
}

/* --- products ----------------------------------------------------------------------------------------------------- */

static int64_t whole_panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL * PANEL; }

/* Convert LANES finite fp16 numbers exactly. */
INLINE vec half_precision(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    const words bits = __builtin_convertvector(*(const halves *)p, words);
    const vec size = (vec)((bits & 0x7fff) << 13) * 0x1p112f;
    return (vec)((words)size | (bits & 0x8000) << 16);
#endif
}

INLINE vec weights(const Matrix *m, int kind, int64_t at)
{
    if (kind == FP32) return load((const float *)m->weight + at);
    if (kind == FP16) return half_precision((const uint16_t *)m->weight + at);
    if (kind == BF16) {
        const halves high = *(const halves *)((const uint16_t *)m->weight + at);
        return (vec)(__builtin_convertvector(high, words) << 16);
    }
    const bytes small = *(const bytes *)((const int8_t *)m->weight + at);
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(small, shorts), ints), vec);
}

/* Product of `rows` rows of x (constant after inlining) and one panel of outputs. */
INLINE void tile(const Matrix *m, int kind, int bent, int rows, const float *x, int64_t x_row, float *y, int64_t y_row,
                 int64_t panel)
{
    vec sum[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = splat(0);
    int64_t at = panel * PANEL * m->inputs;
    for (int64_t k = 0; k < m->inputs; k++, at += PANEL) {
        vec w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = weights(m, kind, at + v * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] += x[r * x_row + k] * w[v];
    }
    for (int v = 0; v < VECTORS; v++) {
        const int64_t n = panel * PANEL + v * LANES;
        const vec bias = load(m->bias + n), scale = kind == INT8 ? load(m->scale + n) : splat(1);
        for (int r = 0; r < rows; r++) {
            const vec out = sum[r][v] * scale + bias;
            store(y + r * y_row + n, bent ? gelu(out) : out);
        }
    }
}

INLINE void all_panels(const Matrix *m, int kind, int bent, const float *x, int64_t x_row, float *y, int64_t y_row,
                       int64_t rows, int64_t first, int64_t last)
{
    for (int64_t panel = first; panel < last; panel++)
        for (int64_t r = 0; r < rows; r += ROWS) {
            const float *from = x + r * x_row;
            float *to = y + r * y_row;
            switch (rows - r < ROWS ? rows - r : ROWS) {
            case 1: tile(m, kind, bent, 1, from, x_row, to, y_row, panel); break;
            case 2: tile(m, kind, bent, 2, from, x_row, to, y_row, panel); break;
            case 3: tile(m, kind, bent, 3, from, x_row, to, y_row, panel); break;
#if defined(__AVX512F__)
            case 4: tile(m, kind, bent, 4, from, x_row, to, y_row, panel); break;
            case 5: tile(m, kind, bent, 5, from, x_row, to, y_row, panel); break;
            case 6: tile(m, kind, bent, 6, from, x_row, to, y_row, panel); break;
            case 7: tile(m, kind, bent, 7, from, x_row, to, y_row, panel); break;
            case 8: tile(m, kind, bent, 8, from, x_row, to, y_row, panel); break;
#endif
            }
        }
}

/* x [rows][inputs] -> y [rows][y_row]: panels `first` .. `last` - 1 of outputs, y_row at least whole panels. */
INLINE void multiply(const Matrix *m, int bent, const float *x, int64_t x_row, float *y, int64_t y_row, int64_t rows,
                     int64_t first, int64_t last)
{
    if (m->kind == FP32) all_panels(m, FP32, bent, x, x_row, y, y_row, rows, first, last);
    else if (m->kind == FP16) all_panels(m, FP16, bent, x, x_row, y, y_row, rows, first, last);
    else if (m->kind == BF16) all_panels(m, BF16, bent, x, x_row, y, y_row, rows, first, last);
    else all_panels(m, INT8, bent, x, x_row, y, y_row, rows, first, last);
}

static void linear(const Matrix *m, const float *x, int64_t x_row, float *y, int64_t rows)
{
    multiply(m, 0, x, x_row, y, whole_panels(m->outputs), rows, 0, whole_panels(m->outputs) / PANEL);
}

static void linear_gelu(const Matrix *m, const float *x, int64_t x_row, float *y, int64_t rows)
{
    multiply(m, 1, x, x_row, y, whole_panels(m->outputs), rows, 0, whole_panels(m->outputs) / PANEL);
}

void product(const Matrix *m, const float *x, float *y, int64_t rows, int64_t first, int64_t last)
{
    multiply(m, 0, x, m->inputs, y, whole_panels(m->outputs), rows, first, last);
}

/* --- LayerNorm ---------------------------------------------------------------------------------------------------- */

/* y = LayerNorm(x), or y += LayerNorm(x). */
INLINE void norm(const Norm *w, const float *x, int64_t size, float *y, int add)
{
    vec sum = splat(0), squares = splat(0);
    float rest = 0, rest_squares = 0;
    int64_t c = 0;
    for (; c + LANES <= size; c += LANES) sum += load(x + c);
    for (; c < size; c++) rest += x[c];
    const float mean = (total(sum) + rest) / (float)size;
    for (c = 0; c + LANES <= size; c += LANES) squares += (load(x + c) - mean) * (load(x + c) - mean);
    for (; c < size; c++) rest_squares += (x[c] - mean) * (x[c] - mean);
    const float rate = 1.f / sqrtf((total(squares) + rest_squares) / (float)size + 1e-5f);
    for (c = 0; c < size; c++) {
        const float out = (x[c] - mean) * rate * w->weight[c] + w->bias[c];
        y[c] = add ? y[c] + out : out;
    }
}

/* Mix of both channels: a = share * a + (1 - share) * b. */
INLINE void mix(const float *share, float *a, const float *b, int64_t size)
{
    for (int64_t c = 0; c < size; c++) a[c] = b[c] + share[c] * (a[c] - b[c]);
}
