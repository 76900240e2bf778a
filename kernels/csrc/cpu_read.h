/* Prefill of text and given frames, row by row: all tokens of a row pass each layer, in chunks that fit the caches. */

enum { CHUNK = 128 }; /* tokens whose numbers stay in the L1 and L2 caches during the products of a layer */

typedef struct { /* tokens that attend to the same keys */
    const int32_t *query, *key;
    int64_t queries, keys; /* the text's keys come first */
    int64_t causal;        /* query i attends to the first causal + i + 1 keys; -1: to all */
    float boost;           /* text attention bias: added to the scores of the text */
} Group;

typedef struct {
    const Group *group;
    const int32_t *token, *place; /* tokens whose keys and values are stored, and their cache indices */
    int64_t groups, kept;
} Sight; /* attention pattern of one channel */

/* Scratch memory of `read_row`, in floats, for `tokens` tokens, each with at most `widest` keys. */
int64_t read_scratch_size(int64_t hidden, int64_t heads, int64_t channels, int64_t tokens, int64_t widest)
{
    const int64_t wide = whole_panels(3 * channels * hidden) + channels * hidden;
    const int64_t chunk = whole_panels(4 * hidden) + 2 * whole_panels(hidden) + hidden;
    const int64_t keys = whole_panels(widest), size = whole_panels(hidden / heads);
    return tokens * wide + CHUNK * chunk + keys * (hidden / heads + size + 1) + ROWS * (keys + 2 * size) + size;
}

/* Pack keys or values as a Matrix: [panels][inputs][PANEL], padded with 0. */
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

/* Replace the scores of `seen` keys by e^(score - maximum), and fill with 0 up to `width`, a multiple of LANES.
   Returns the inverse of the sum. */
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

/* Attention of one head of one group. q, k, v: [tokens][row]; out [tokens][out_row]. The first `padding` keys are
   masked. */
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

/* Prefill of row `row`: x [tokens][hidden] are its embedded tokens, which are overwritten. Stores the keys and values
   that generated frames attend to. The first `text` tokens are the text's, of which the first `padding` are masked;
   their output uses the first channel only. sights: of the spatial channel, and of the temporal channel on even and on
   odd layers. */
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
        if (l + 1 == net->layers) return; /* the predictions of these tokens are not needed */
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
