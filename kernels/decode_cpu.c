/* Reading, a decoding step and a draw on a CPU, in fp32 sums: what `kernels.cpu_step`, `kernels.cpu_read` and
   `kernels.cpu_draw` compile and call.

   Every number is added in an order that depends on the network's sizes and on what a slot sees, never on how many rows
   or slots a step has: a row's result is the same, bit for bit, in any company. Pointers and sizes are the caller's to
   check; the Python side owns all memory. Plain C with the vector extension of gcc and clang, for any processor.
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
enum { PANEL = 32, VECTORS = PANEL / LANES }; /* outputs of a matrix that lie side by side */

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
    const float *scale; /* of each output, for INT8 */
    const float *bias;
    int64_t outputs, inputs, kind;
} Matrix;

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Norm before, after, before_mlp, after_mlp;
    Matrix inward, widen, narrow;
    Matrix outward[2]; /* of each channel */
    const float *share; /* of the first channel in each output, where there are two */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, channels;
    const Layer *layer;
    Norm final;
    const float *words; /* word embeddings [vocabulary][hidden] */
} Net;

typedef struct {
    float *data; /* [2][batch][heads][capacity][head size] */
    int64_t capacity;
} Arena;

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
    const vec rounder = splat(12582912.f); /* adding 1.5 * 2^23 and taking it away rounds to whole numbers */
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

/* Sums of neighbours: of a in the lower half of the result, of b in the upper one. */
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

/* LANES finite numbers of 16 bits, exactly. */
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

/* `rows` rows (a constant, once inlined) of x times one panel of outputs. */
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

/* Both channels as one: a = share * a + (1 - share) * b. */
INLINE void mix(const float *share, float *a, const float *b, int64_t size)
{
    for (int64_t c = 0; c < size; c++) a[c] = b[c] + share[c] * (a[c] - b[c]);
}

/* --- attention of one slot of one head ---------------------------------------------------------------------------- */

/* Scores of LANES keys of `size` numbers, a multiple of LANES. */
INLINE vec dots(const float *q, const float *k, int size)
{
    vec sum[LANES];
    for (int i = 0; i < LANES; i++) {
        sum[i] = load(q) * load(k + i * size);
        for (int c = LANES; c < size; c += LANES) sum[i] += load(q + c) * load(k + i * size + c);
    }
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++) sum[i] = pairs(sum[2 * i], sum[2 * i + 1]);
    return sum[0];
}

INLINE void scores(const float *q, const float *k, int64_t seen, int64_t size, float scale, float *p)
{
    int64_t s = 0;
    if (size == 64)
        for (; s + LANES <= seen; s += LANES) store(p + s, dots(q, k + s * 64, 64) * scale);
    else if (size == 32)
        for (; s + LANES <= seen; s += LANES) store(p + s, dots(q, k + s * 32, 32) * scale);
    for (; s < seen; s++) {
        float sum = 0;
        for (int64_t c = 0; c < size; c++) sum += q[c] * k[s * size + c];
        p[s] = sum * scale;
    }
}

INLINE void values(const float *p, const float *v, int64_t seen, int size, float *out)
{
    vec sum[64 / LANES];
    for (int c = 0; c < size / LANES; c++) sum[c] = splat(0);
    for (int64_t s = 0; s < seen; s++)
        for (int c = 0; c < size / LANES; c++) sum[c] += p[s] * load(v + s * size + c * LANES);
    for (int c = 0; c < size / LANES; c++) store(out + c * LANES, sum[c]);
}

/* softmax(q k / sqrt(size) + text) v; `text` is added to the first `text_slots` scores. p: room for seen + LANES. */
static void attend(const float *q, const float *k, const float *v, int64_t seen, int64_t size, const float *text,
                   int64_t text_slots, float *p, float *out)
{
    scores(q, k, seen, size, 1.f / sqrtf((float)size), p);
    for (int64_t s = 0; text && s < text_slots && s < seen; s++) p[s] += text[s];
    for (int64_t s = seen; s % LANES; s++) p[s] = -INFINITY;
    vec best = splat(-INFINITY), sum = splat(0);
    for (int64_t s = 0; s < seen; s += LANES) best = larger(best, load(p + s));
    best = splat(most(best));
    for (int64_t s = 0; s < seen; s += LANES) {
        const vec share = exponential(load(p + s) - best);
        store(p + s, share);
        sum += share;
    }
    if (size == 64) values(p, v, seen, 64, out);
    else if (size == 32) values(p, v, seen, 32, out);
    else {
        memset(out, 0, size * sizeof(float));
        for (int64_t s = 0; s < seen; s++)
            for (int64_t c = 0; c < size; c++) out[c] += p[s] * v[s * size + c];
    }
    const float whole = 1.f / total(sum);
    for (int64_t c = 0; c < size; c++) out[c] *= whole;
}

/* --- a step ------------------------------------------------------------------------------------------------------- */

/* Numbers of scratch memory that `step` takes for so many rows and slots, none of which sees more than `widest`. */
int64_t scratch_size(int64_t hidden, int64_t tokens, int64_t widest)
{
    const int64_t wide = whole_panels(6 * hidden) + whole_panels(4 * hidden) + whole_panels(hidden) + 3 * hidden;
    return tokens * wide + widest + LANES;
}

/* One channel of one layer: keeps the new keys and values, then attends. qkv [rows * slots][wide], of it this channel's
   3 * hidden from `qkv` on; span [slots][2]: first place seen and the one behind the last, which is the slot's own. */
static void channel(const Net *net, const Arena *arena, int64_t batch, int64_t first, int64_t rows, int64_t slots,
                    const int64_t *span, const float *qkv, int64_t wide, const float *text, int64_t text_slots,
                    float *p, float *out)
{
    const int64_t h = net->hidden, heads = net->heads, d = h / heads, places = arena->capacity * d;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t head = 0; head < heads; head++) {
            float *k = arena->data + ((first + r) * heads + head) * places, *v = k + batch * heads * places;
            const float *q = qkv + r * slots * wide + head * d;
            for (int64_t s = 0; s < slots; s++) {
                memcpy(k + (span[2 * s + 1] - 1) * d, q + s * wide + h, d * sizeof(float));
                memcpy(v + (span[2 * s + 1] - 1) * d, q + s * wide + 2 * h, d * sizeof(float));
            }
            for (int64_t s = 0; s < slots; s++) {
                const int64_t start = span[2 * s], seen = span[2 * s + 1] - start;
                attend(q + s * wide, k + start * d, v + start * d, seen, d, text ? text + (first + r) * text_slots : 0,
                       text_slots, p, out + (r * slots + s) * net->channels * h + head * d);
            }
        }
}

/* All layers and the final LayerNorm for `rows` of `batch` rows, from row `first` on.
   ids [batch][slots], positions [slots][hidden], out [batch][slots][hidden], spans [3][slots][2]: in the frame's own
   channel, in the one across frames on even and on odd layers; arenas [layers][channels]; text [batch][text_slots]. */
void step(const Net *net, const int64_t *ids, const float *positions, float *out, int64_t batch, int64_t first,
          int64_t rows, int64_t slots, const int64_t *spans, const Arena *arenas, const float *text, int64_t text_slots,
          float *scratch)
{
    const int64_t h = net->hidden, both = net->channels, tokens = rows * slots;
    const int64_t wide = whole_panels(3 * both * h), wide_mlp = whole_panels(4 * h), wide_h = whole_panels(h);
    float *normed = scratch, *qkv = normed + tokens * h, *seen = qkv + tokens * wide, *o = seen + tokens * both * h;
    float *mlp = o + tokens * wide_h, *p = mlp + tokens * wide_mlp, *x = out + first * slots * h;
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t c = 0; c < h; c++)
            x[t * h + c] = net->words[ids[first * slots + t] * h + c] + positions[t % slots * h + c];
    for (int64_t l = 0; l < net->layers; l++) {
        const Layer *layer = net->layer + l;
        for (int64_t t = 0; t < tokens; t++) norm(&layer->before, x + t * h, h, normed + t * h, 0);
        linear(&layer->inward, normed, h, qkv, tokens);
        for (int64_t c = 0; c < both; c++)
            channel(net, arenas + both * l + c, batch, first, rows, slots, spans + (c ? 1 + l % 2 : 0) * slots * 2,
                    qkv + 3 * c * h, wide, text, text_slots, p, seen + c * h);
        linear(&layer->outward[0], seen, both * h, o, tokens);
        if (both > 1) linear(&layer->outward[1], seen + h, both * h, mlp, tokens);
        for (int64_t t = 0; t < tokens; t++) {
            if (both > 1) mix(layer->share, o + t * wide_h, mlp + t * wide_h, h);
            norm(&layer->after, o + t * wide_h, h, x + t * h, 1);
            norm(&layer->before_mlp, x + t * h, h, normed + t * h, 0);
        }
        linear_gelu(&layer->widen, normed, h, mlp, tokens);
        linear(&layer->narrow, mlp, wide_mlp, o, tokens);
        for (int64_t t = 0; t < tokens; t++) norm(&layer->after_mlp, o + t * wide_h, h, x + t * h, 1);
    }
    for (int64_t t = 0; t < tokens; t++) {
        norm(&net->final, x + t * h, h, normed + t * h, 0);
        memcpy(x + t * h, normed + t * h, h * sizeof(float));
    }
}

/* --- reading -------------------------------------------------------------------------------------------------------- */

enum { CHUNK = 128 }; /* tokens whose numbers stay in the nearer caches through the products of a layer */

typedef struct { /* tokens that attend to the same tokens */
    const int32_t *query, *key;
    int64_t queries, keys; /* keys begin with the text's */
    int64_t causal;        /* query i sees the first causal + i + 1 keys; -1: all */
    float boost;           /* added to the scores of the text */
} Group;

typedef struct {
    const Group *group;
    const int32_t *token, *place; /* which tokens' keys and values are kept, and where */
    int64_t groups, kept;
} Sight; /* of one channel */

/* Numbers of scratch memory that `read` takes for so many tokens, none of which sees more than `widest`. */
int64_t read_scratch_size(int64_t hidden, int64_t heads, int64_t channels, int64_t tokens, int64_t widest)
{
    const int64_t wide = whole_panels(3 * channels * hidden) + channels * hidden;
    const int64_t chunk = whole_panels(4 * hidden) + 2 * whole_panels(hidden) + hidden;
    const int64_t keys = whole_panels(widest), size = whole_panels(hidden / heads);
    return tokens * wide + CHUNK * chunk + keys * (hidden / heads + size + 1) + ROWS * (keys + 2 * size) + size;
}

/* m as a product of few rows reads it: [panels][inputs][PANEL], outputs that are not there 0. */
static void pack_keys(const float *k, int64_t row, const int32_t *key, int64_t keys, int64_t size, float *packed)
{
    for (int64_t s = 0; s < whole_panels(keys); s++)
        for (int64_t c = 0; c < size; c++)
            packed[(s / PANEL * size + c) * PANEL + s % PANEL] = s < keys ? k[key[s] * row + c] : 0;
}

static void pack_values(const float *v, int64_t row, const int32_t *key, int64_t keys, int64_t size, float *packed)
{
    for (int64_t c = 0; c < whole_panels(size); c += PANEL)
        for (int64_t s = 0; s < keys; s++)
            for (int64_t i = 0; i < PANEL; i++)
                packed[(c / PANEL * keys + s) * PANEL + i] = c + i < size ? v[key[s] * row + c + i] : 0;
}

/* Scores of `seen` keys -> e^(score - the largest), 0 up to `width`, a multiple of LANES; -> the sum's inverse. */
INLINE float shares(float *p, int64_t seen, int64_t width)
{
    vec best = splat(-INFINITY), sum = splat(0);
    for (int64_t s = seen; s < width; s++) p[s] = -INFINITY;
    for (int64_t s = 0; s < width; s += LANES) best = larger(best, load(p + s));
    best = splat(most(best));
    for (int64_t s = 0; s < width; s += LANES) {
        const vec share = choose(load(p + s) == splat(-INFINITY), splat(0), exponential(load(p + s) - best));
        store(p + s, share);
        sum += share;
    }
    return 1.f / total(sum);
}

/* One head of one group. q, k, v: [tokens][row]; out [tokens][out_row]. The first `padding` keys are not seen. */
static void attend_group(const Group *g, const float *q, const float *k, const float *v, int64_t row, int64_t size,
                         int64_t text, int64_t padding, float *out, int64_t out_row, float *scratch)
{
    const int64_t width = whole_panels(g->keys), wide = whole_panels(size);
    float *keys = scratch, *values = keys + width * size, *bias = values + width * wide, *none = bias + width;
    float *asked = none + wide, *p = asked + ROWS * wide, *found = p + ROWS * width;
    const float scale = 1.f / sqrtf((float)size);
    pack_keys(k, row, g->key, g->keys, size, keys);
    pack_values(v, row, g->key, g->keys, size, values);
    for (int64_t s = 0; s < width; s++) bias[s] = s < padding ? -INFINITY : s < text ? g->boost : 0;
    memset(none, 0, wide * sizeof(float));
    const Matrix by_keys = {keys, 0, bias, g->keys, size, FP32};
    for (int64_t i = 0; i < g->queries; i += ROWS) {
        const int64_t rows = g->queries - i < ROWS ? g->queries - i : ROWS;
        const int64_t seen = g->causal < 0 ? g->keys : g->causal + i + rows, panels = whole_panels(seen) / PANEL;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < size; c++) asked[r * size + c] = q[g->query[i + r] * row + c] * scale;
        all_panels(&by_keys, FP32, 0, asked, size, p, width, rows, 0, panels);
        float inverse[ROWS];
        for (int64_t r = 0; r < rows; r++)
            inverse[r] = shares(p + r * width, g->causal < 0 ? g->keys : g->causal + i + r + 1, panels * PANEL);
        for (int64_t panel = 0; panel < wide / PANEL; panel++) {
            const Matrix by_values = {values + panel * g->keys * PANEL, 0, none, PANEL, seen, FP32};
            all_panels(&by_values, FP32, 0, p, width, found + panel * PANEL, wide, rows, 0, 1);
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < size; c++)
                out[g->query[i + r] * out_row + c] = found[r * wide + c] * inverse[r];
    }
}

/* Reads `tokens` tokens of row `row`, x [tokens][hidden] once embedded: keeps what its drawn frames will see of them.
   The first `text` are the text's, and of them the first `padding` nobody's; only the first channel is theirs.
   sights: of the frame's own channel, of the one across frames on even and on odd layers. x is overwritten. */
void read_row(const Net *net, float *x, int64_t row, int64_t batch, int64_t tokens, int64_t text, int64_t padding,
              const Sight *sights, const Arena *arenas, float *scratch)
{
    const int64_t h = net->hidden, heads = net->heads, d = h / heads, both = net->channels;
    const int64_t wide = whole_panels(3 * both * h), wide_mlp = whole_panels(4 * h), wide_h = whole_panels(h);
    float *qkv = scratch, *seen = qkv + tokens * wide, *normed = seen + tokens * both * h, *o = normed + CHUNK * h;
    float *other = o + CHUNK * wide_h, *mlp = other + CHUNK * wide_h, *rest = mlp + CHUNK * wide_mlp;
    for (int64_t l = 0; l < net->layers; l++) {
        const Layer *layer = net->layer + l;
        for (int64_t t = 0; t < tokens; t += CHUNK) {
            const int64_t count = tokens - t < CHUNK ? tokens - t : CHUNK;
            for (int64_t i = 0; i < count; i++) norm(&layer->before, x + (t + i) * h, h, normed + i * h, 0);
            linear(&layer->inward, normed, h, qkv + t * wide, count);
        }
        for (int64_t c = 0; c < both; c++) {
            const Sight *sight = sights + (c ? 1 + l % 2 : 0);
            const Arena *arena = arenas + both * l + c;
            const float *q = qkv + 3 * c * h;
            for (int64_t head = 0; head < heads; head++) {
                float *k = arena->data + (row * heads + head) * arena->capacity * d;
                float *v = k + batch * heads * arena->capacity * d;
                for (int64_t i = 0; i < sight->kept; i++) {
                    const float *from = q + sight->token[i] * wide + head * d;
                    memcpy(k + sight->place[i] * d, from + h, d * sizeof(float));
                    memcpy(v + sight->place[i] * d, from + 2 * h, d * sizeof(float));
                }
                for (int64_t i = 0; i < sight->groups && l + 1 < net->layers; i++)
                    attend_group(sight->group + i, q + head * d, q + h + head * d, q + 2 * h + head * d, wide, d, text,
                                 padding, seen + c * h + head * d, both * h, rest);
            }
        }
        if (l + 1 == net->layers) return; /* nobody asks what they would predict */
        for (int64_t t = 0; t < tokens; t += CHUNK) {
            const int64_t count = tokens - t < CHUNK ? tokens - t : CHUNK;
            linear(&layer->outward[0], seen + t * both * h, both * h, o, count);
            if (both > 1) linear(&layer->outward[1], seen + t * both * h + h, both * h, other, count);
            for (int64_t i = 0; i < count; i++) {
                float *mine = x + (t + i) * h;
                if (both > 1 && t + i >= text) mix(layer->share, o + i * wide_h, other + i * wide_h, h);
                norm(&layer->after, o + i * wide_h, h, mine, 1);
                norm(&layer->before_mlp, mine, h, normed + i * h, 0);
            }
            linear_gelu(&layer->widen, normed, h, mlp, count);
            linear(&layer->narrow, mlp, wide_mlp, o, count);
            for (int64_t i = 0; i < count; i++) norm(&layer->after_mlp, o + i * wide_h, h, x + (t + i) * h, 1);
        }
    }
}

/* --- a draw ------------------------------------------------------------------------------------------------------- */

INLINE uint32_t mixed(uint32_t word)
{
    word = (word ^ (word >> 16)) * 0x21F0AAADu;
    word = (word ^ (word >> 15)) * 0x735A2D97u;
    return word ^ (word >> 15);
}

/* "Cluster" sampling, as `cogvideo.sampling` describes it, of one row of scores. labels [vocabulary]; members
   [clusters][widest], of which the first sizes[c] count; shares [vocabulary + LANES], mass [clusters]: scratch. */
static int64_t draw_one(const float *logits, int64_t vocabulary, const int32_t *labels, const int64_t *members,
                        const int64_t *sizes, int64_t clusters, int64_t widest, float temperature, int64_t top_k,
                        float inner_temperature, const int64_t *key, float *shares, double *mass)
{
    float best = -INFINITY, most_likely = -1;
    vec bests = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= vocabulary; i += LANES) bests = larger(bests, load(logits + i));
    for (best = most(bests); i < vocabulary; i++) best = logits[i] > best ? logits[i] : best;
    best /= temperature;
    for (i = 0; i + LANES <= vocabulary; i += LANES)
        store(shares + i, exponential(load(logits + i) / temperature - best));
    for (; i < vocabulary; i++) shares[i] = expf(logits[i] / temperature - best);
    memset(mass, 0, clusters * sizeof(double));
    for (i = 0; i < vocabulary; i++) mass[labels[i]] += shares[i];
    int64_t chosen = members[0];
    for (int64_t kept = 0; kept < top_k && kept < clusters; kept++) {
        int64_t top = 0;
        for (int64_t c = 1; c < clusters; c++) top = mass[c] > mass[top] ? c : top;
        const int64_t *member = members + top * widest;
        float high = -INFINITY, sum = 0;
        const int64_t size = sizes[top], width = (size + LANES - 1) / LANES * LANES;
        for (i = 0; i < size; i++) {
            shares[i] = logits[member[i]] / temperature / inner_temperature;
            high = shares[i] > high ? shares[i] : high;
        }
        for (; i < width; i++) shares[i] = -INFINITY;
        for (i = 0; i < width; i += LANES) store(shares + i, exponential(load(shares + i) - high));
        for (i = 0; i < size; i++) sum += shares[i];
        for (i = 0; i < size; i++) {
            const uint32_t word = mixed(mixed((uint32_t)member[i] * 0x1E3779B9u ^ (uint32_t)key[0]) ^ (uint32_t)key[1]);
            const float uniform = (float)((uint64_t)word + 1) * (0.999999940395355f / 4294967296.f);
            const float share = (float)mass[top] * (shares[i] / sum);
            if (share < most_likely * uniform * 0.9999f) continue; /* -log(1 - u) is never less than u: it cannot win */
            const float race = share / -log1pf(-uniform);
            if (race > most_likely) most_likely = race, chosen = member[i];
        }
        mass[top] = -1;
    }
    return chosen;
}

/* logits: `rows` rows, `row` apart; keys [rows][2]; out [rows]. Scores that are no numbers draw a valid token. */
void draw(const float *logits, int64_t rows, int64_t row, int64_t vocabulary, const int32_t *labels,
          const int64_t *members, const int64_t *sizes, int64_t clusters, int64_t widest, float temperature,
          int64_t top_k, float inner_temperature, const int64_t *keys, int64_t *out, float *shares, double *mass)
{
    for (int64_t r = 0; r < rows; r++)
        out[r] = draw_one(logits + r * row, vocabulary, labels, members, sizes, clusters, widest, temperature, top_k,
                          inner_temperature, keys + 2 * r, shares, mass);
}
