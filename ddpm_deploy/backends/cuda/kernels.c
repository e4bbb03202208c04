/* The reverse loop's own arithmetic: noise, and one row of a plan. One source for the GPU's compiler and a host's.

   Noise is that of ddpm_deploy/noise.py: Philox4x64-10 with key (seed, sample) and counter (block + 1, 0, row, stream),
   then Box-Muller in double precision, rounded once. Its integers equal numpy's bit for bit.

   Rows are read from the tables of a plan by a counter in device memory, so that a captured graph serves any row:
   `begin_row` reads counter[0] and copies it to counter[1], the kernel that ends a row reads counter[1] and writes
   counter[0]; no kernel writes what it reads.

   B samples of n numbers each; K images in a state. State image k of sample b begins at b * sample_stride +
   k * image_stride. */

typedef unsigned long long u64;
typedef long long i64;

#ifdef __CUDACC__
#define DEVICE static __device__ inline
#define KERNEL extern "C" __global__ void
#define EACH(i, count) \
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (count); i += gridDim.x * (i64)blockDim.x)
#define HIGH(a, b) __umul64hi(a, b)
#define LOWER(address, value) atomicMin(address, value)
#else
#include <math.h>
#define DEVICE static inline
#define KERNEL void
#define EACH(i, count) for (i64 i = 0; i < (count); ++i)
#define HIGH(a, b) ((u64)(((unsigned __int128)(a) * (b)) >> 64))
#define LOWER(address, value) (*(address) = *(address) < (value) ? *(address) : (value))
#endif

#define WORDS 4  /* of 64 bits in a block of Philox; each makes two numbers */
#define FINITE 2147483647
#define MAX_EXPONENT 80.0f
#define TURN (6.283185307179586476925286766559 / 4294967296.0)

DEVICE void philox(u64 seed, u64 sample, u64 block, u64 row, u64 stream, u64 *r)
{
    const u64 m0 = 0xD2E7470EE14C6C93ULL, m1 = 0xCA5A826395121157ULL;
    u64 c0 = block + 1, c1 = 0, c2 = row, c3 = stream, k0 = seed, k1 = sample;
    for (int round = 0; round < 10; ++round) {
        const u64 high0 = HIGH(m0, c0), low0 = m0 * c0, high1 = HIGH(m1, c2), low1 = m1 * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }
    r[0] = c0;
    r[1] = c1;
    r[2] = c2;
    r[3] = c3;
}

/* The numbers 8 block ... 8 block + 7 of a stream, as far as there are n, each written to `images` places. */
DEVICE void draw(float *out, i64 n, i64 images, i64 image_stride, u64 seed, u64 sample, u64 row, u64 stream, i64 block)
{
    u64 r[WORDS];
    philox(seed, sample, (u64)block, row, stream, r);
    for (int word = 0; word < WORDS; ++word) {
        const double radius = sqrt(-2.0 * log((double)((r[word] >> 32) + 1) / 4294967296.0));
        const double angle = TURN * (double)(r[word] & 0xFFFFFFFFULL);
        const i64 at = 2 * (block * WORDS + word);
        for (i64 k = 0; k < images; ++k) {
            if (at < n) out[k * image_stride + at] = (float)(radius * cos(angle));
            if (at + 1 < n) out[k * image_stride + at + 1] = (float)(radius * sin(angle));
        }
    }
}

DEVICE i64 blocks_of(i64 n) { return (n + 2 * WORDS - 1) / (2 * WORDS); }

/* The raw integers of a stream, 4 * blocks for each sample: for tests. */
KERNEL ddpm_integers(u64 *out, const u64 *seeds, const u64 *samples, u64 row, u64 stream, i64 B, i64 blocks)
{
    EACH(i, B * blocks) philox(seeds[i / blocks], samples[i / blocks], (u64)(i % blocks), row, stream, out + WORDS * i);
}

/* The state before row 0: every image is x_T, which is given (B, n), or drawn where it is null. */
KERNEL ddpm_start(float *state, const float *x_T, const u64 *seeds, const u64 *samples, int *counter, int *first_bad,
                  i64 B, i64 n, i64 K, i64 sample_stride, i64 image_stride)
{
    const i64 blocks = blocks_of(n);
    EACH(i, B * blocks)
    {
        const i64 b = i / blocks, block = i % blocks;
        float *first = state + b * sample_stride;
        if (i == 0) counter[0] = 0;
        if (block == 0) first_bad[b] = FINITE;
        if (!x_T) {
            draw(first, n, K, image_stride, seeds[b], samples[b], 0, 0, block);
            continue;
        }
        for (i64 j = 8 * block; j < n && j < 8 * block + 8; ++j)
            for (i64 k = 0; k < K; ++k) first[k * image_stride + j] = x_T[b * n + j];
    }
}

/* Everything that a row gives to the network and its update: the row's coefficients for each sample, and noise z (B, n)
   where it is not null: zeros for a row that draws none. Outputs that are null are left out. weight: of each sample's
   guidance, which counts in the rows whose `guided` is not 0 and is 1 in the others. */
KERNEL ddpm_begin_row(int *counter, const float *t, const float *predict, const float *clip, const float *update,
                      const float *log_variance, float *t_out, float *predict_out, float *clip_out, float *update_out,
                      float *log_variance_out, const float *guided, const float *weight, float *weight_out, float *z,
                      const u64 *seeds, const u64 *samples, i64 B, i64 n, i64 K)
{
    const i64 row = counter[0], width = K * (K + 3), blocks = z ? blocks_of(n) : 0;
    const i64 each = blocks > width ? blocks : width;
    int draws = 0;
    for (i64 k = 0; k < K; ++k) draws |= update[row * width + k * (K + 3) + K + 2] != 0.0f;
    EACH(i, B * each)
    {
        const i64 b = i / each, p = i % each;
        if (i == 0) counter[1] = (int)row;
        if (p == 0) t_out[b] = t[row];
        if (p == 0 && weight_out) weight_out[b] = guided[row] != 0.0f ? weight[b] : 1.0f;
        if (p < 2 && predict_out) predict_out[2 * b + p] = predict[2 * row + p];
        if (p < 2 && clip_out) clip_out[2 * b + p] = clip[2 * row + p];
        if (p < 2 && log_variance_out) log_variance_out[2 * b + p] = log_variance[2 * row + p];
        if (p < width && update_out) update_out[b * width + p] = update[row * width + p];
        if (p >= blocks) continue;
        if (draws) draw(z + b * n, n, 1, 0, seeds[b], samples[b], (u64)row, 1, p);
        else
            for (i64 j = 8 * p; j < n && j < 8 * p + 8; ++j) z[b * n + j] = 0.0f;
    }
}

/* Apply a row to the state in place. m: the network's raw output, m_stride numbers a sample, of which the second n
   interpolate the variance where `learned` is not 0. z: null where no row draws noise. x0: null, or (B, n). */
KERNEL ddpm_apply_row(int *counter, float *state, const float *m, const float *z, float *x0, const float *predict,
                      const float *clip, const float *update, const float *log_variance, int *first_bad, i64 B, i64 n,
                      i64 K, i64 sample_stride, i64 image_stride, i64 m_stride, i64 learned)
{
    const i64 row = counter[1];
    const float *M = update + row * K * (K + 3);
    const float p_x = predict[2 * row], p_m = predict[2 * row + 1], lower = clip[2 * row], upper = clip[2 * row + 1];
    EACH(i, B * n)
    {
        const i64 b = i / n, j = i % n;
        float *S = state + b * sample_stride + j;
        const float output = m[b * m_stride + j];
        float noise = z ? z[i] : 0.0f, next[64], finite = output - output;
        if (learned) {
            const float v = m[b * m_stride + n + j], f = (v + 1.0f) * 0.5f;
            const float exponent = (f * log_variance[2 * row + 1] + (1.0f - f) * log_variance[2 * row]) * 0.5f;
            noise *= expf(exponent < MAX_EXPONENT ? exponent : MAX_EXPONENT);
            finite += v - v;
        }
        if (finite != 0.0f) LOWER(&first_bad[b], (int)row);
        float d = p_x * S[0] + p_m * output;
        d = d < lower ? lower : (d > upper ? upper : d);
        if (x0) x0[i] = d;
        for (i64 k = 0; k < K; ++k) {
            const float *c = M + k * (K + 3);
            float sum = 0.0f;
            for (i64 other = 0; other < K; ++other)
                if (c[other] != 0.0f) sum += c[other] * S[other * image_stride];
            if (c[K] != 0.0f) sum += c[K] * d;
            if (c[K + 1] != 0.0f) sum += c[K + 1] * output;
            if (c[K + 2] != 0.0f) sum += c[K + 2] * noise;
            next[k] = sum;
        }
        for (i64 k = 0; k < K; ++k) S[k * image_stride] = next[k];
        if (i == 0) counter[0] = (int)row + 1;
    }
}

/* End a row whose update the graph has done: note which samples were not finite (flags (B,) of 1 or 0). */
KERNEL ddpm_end_row(int *counter, const float *finite, int *first_bad, i64 B)
{
    const i64 row = counter[1];
    EACH(b, B)
    {
        if (finite[b] == 0.0f) LOWER(&first_bad[b], (int)row);
        if (b == 0) counter[0] = (int)row + 1;
    }
}

/* The samples (B, n): image 0 of the state. */
KERNEL ddpm_finish(float *samples, const float *state, i64 B, i64 n, i64 sample_stride)
{
    EACH(i, B * n) samples[i] = state[i / n * sample_stride + i % n];
}
