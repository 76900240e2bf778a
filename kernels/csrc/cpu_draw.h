/* Sampling of tokens from logits. */

INLINE uint32_t mixed(uint32_t word)
{
    word = (word ^ (word >> 16)) * 0x21F0AAADu;
    word = (word ^ (word >> 15)) * 0x735A2D97u;
    return word ^ (word >> 15);
}

/* Cluster sampling (see `cogvideo.inference.sampling`) of one row of logits. labels [vocabulary]; members
   [clusters][widest], of which the first sizes[c] are valid; shares [vocabulary + LANES], mass [clusters]: scratch. */
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
            if (share < most_likely * uniform * 0.9999f) continue; /* -log(1 - u) >= u: it cannot win */
            const float race = share / -log1pf(-uniform);
            if (race > most_likely) most_likely = race, chosen = member[i];
        }
        mass[top] = -1;
    }
    return chosen;
}

/* logits: `rows` rows with stride `row`; keys [rows][2]; out [rows]. Rows with NaN yield a valid token as well. */
void draw(const float *logits, int64_t rows, int64_t row, int64_t vocabulary, const int32_t *labels,
          const int64_t *members, const int64_t *sizes, int64_t clusters, int64_t widest, float temperature,
          int64_t top_k, float inner_temperature, const int64_t *keys, int64_t *out, float *shares, double *mass)
{
    for (int64_t r = 0; r < rows; r++)
        out[r] = draw_one(logits + r * row, vocabulary, labels, members, sizes, clusters, widest, temperature, top_k,
                          inner_temperature, keys + 2 * r, shares, mass);
}
