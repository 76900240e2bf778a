/* Prefill, decoding step and sampling on a CPU, with fp32 sums. `kernels.cpu_decode`, `kernels.cpu_prefill` and
   `kernels.cpu_sample` compile and call them.

   The order of every sum depends on the network's sizes and on a slot's keys alone. It does not depend on the number of
   rows or slots in a step, so that a row's result is the same, bit for bit, in every batch. The caller checks pointers
   and sizes, and Python owns all memory. Plain C with the vector extension of gcc and clang, for any processor.
*/
#include "cpu_vectors.h"

typedef struct {
    Norm before, after, before_mlp, after_mlp;
    Matrix inward, widen, narrow;
    Matrix outward[2]; /* output projection of each channel */
    const float *share; /* gate: weight of the first of two channels in each output */
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

/* --- attention of one slot of one head ---------------------------------------------------------------------------- */

/* Dot products of q with LANES keys of `size` numbers, a multiple of LANES. */
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

/* softmax(q k / sqrt(size) + text) v; `text` is added to the first `text_slots` scores. p: scratch, seen + LANES. */
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

/* Scratch memory of `step`, in floats, for `tokens` rows * slots, each with at most `widest` keys. */
int64_t scratch_size(int64_t hidden, int64_t tokens, int64_t widest)
{
    const int64_t wide = whole_panels(6 * hidden) + whole_panels(4 * hidden) + whole_panels(hidden) + 3 * hidden;
    return tokens * wide + widest + LANES;
}

/* One channel of one layer: stores the new keys and values, then attends. qkv [rows * slots][wide]: this channel's
   3 * hidden numbers begin at `qkv`. span [slots][2]: start and end (exclusive) of a slot's keys; the last is its own.
*/
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
   ids [batch][slots], positions [slots][hidden], out [batch][slots][hidden], spans [3][slots][2]: of the spatial
   channel, and of the temporal channel on even and on odd layers; arenas [layers][channels]; text [batch][text_slots].
*/
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

#include "cpu_draw.h"
#include "cpu_read.h"
