// pixel_gradients on CUDA: what a call is, how it is cut into launches, and the launches.
//
// Two kernels make per-(image, chunk) partial results: `stream` (pixel_gradients_stream.cuh: 1 x 1 heads of up to 24 classes
// over planar or channels-last rows, tensor cores, bound by memory) and `tile` (pixel_gradients_tile.cuh: everything else).
// A chunk is a run of tiles of one image; how many there are depends on the image's own size and on the head, never on the
// batch. A second kernel adds an image's chunks up in order. So results repeat bitwise and do not depend on the batch.
#pragma once

#include <cstdint>
#include <string>

#include "call.h"

#ifdef __CUDACC__
#define ALGES_HOST_DEVICE __host__ __device__
#else
#define ALGES_HOST_DEVICE
#endif

namespace alges::cuda_pixel_gradients {

struct Shape {
  int64_t batch;
  int channels, classes;
  int size[3];    // D, H, W
  int kernel[3];  // odd

  ALGES_HOST_DEVICE int taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  ALGES_HOST_DEVICE int64_t columns() const { return static_cast<int64_t>(channels) * taps(); }  // of the (K, d, *kernel) gradient
  ALGES_HOST_DEVICE int64_t pixels() const { return static_cast<int64_t>(size[0]) * size[1] * size[2]; }
};

struct Call : Outputs {
  Shape shape;
  Operand features, logits, residual, valid;
  const float* weight = nullptr;  // (K, d, *kernel), contiguous
  const float* bias = nullptr;
  bool weight_is_bfloat16 = false;  // every value of it
  bool allow_tf32 = false;  // one TF32 product where float32's accuracy takes three
};

constexpr int64_t kScratchBytes = 16 << 20;

// How a batch is cut, whichever kernel runs. One partial result is `words` 4-byte words: the (K, columns) sums of r ⊗ z̃,
// K sums of norms, K pixel counts, then entropy, margin, confidence and the number of valid pixels; then K sums of p, K of
// p times the entropy, and d of features.
ALGES_HOST_DEVICE inline int64_t words_of_scores(const Shape& shape) { return 2 * int64_t{shape.classes} + 4; }
ALGES_HOST_DEVICE inline int64_t words_by_class(const Shape& shape) { return 2 * int64_t{shape.classes} + shape.channels; }

struct Cut {
  int64_t tiles;            // of one image
  int chunks;               // of one image
  int64_t words;            // of one partial result
  int64_t images_a_launch;  // as many as scratch holds
};

// The tile kernel: 256 threads, one block per (image, chunk, channel group).
struct TilePlan {
  int tile[3];                       // D, H, W of a tile: powers of two
  int pixels;                        // their product
  int halo[3];                       // D, H, W of the patch the tile needs
  int halo_positions, halo_stride;   // product, and the odd row stride in shared memory
  int channel_block, channel_blocks; // channels in shared memory at a time
  int groups;                        // the channel blocks are dealt to this many blocks, each computing all logits
  int class_stride;                  // floats from one pixel's (or column's) classes to the next's
  int splits;                        // pixels of a tile are dealt to this many sums, added in order at the end
  bool accumulate_in_shared;
  int shared_bytes;
  Cut cut;
};

// The stream kernel: 128 threads, one block per (image, chunk).
struct StreamPlan {
  bool channels_last;
  int pixels;                       // of a tile
  int class_tiles;                  // of 8 classes: 2 or 3
  int channel_tiles;                // of 16 channels
  int sharing;                      // warps that share the channels of the same pixels: 1, 2 or 4
  int tiles_a_warp;                 // of 16 channels
  int stride;                       // elements from a row of a stage to the next
  int stages, stage_bytes;
  int weight_parts;                 // of bfloat16: 1 where the weight was given in it, else 3
  int weight_words, row_words, share_words, total_words;  // of shared memory
  int shared_bytes;
  Cut cut;
};

// Fills `plan`, or says why this call is not for the stream kernel.
std::string plan_stream(const Call& call, int shared_limit, StreamPlan& plan);

constexpr int kStreamThreads = 128;
constexpr int kStreamWarps = kStreamThreads / 32;
// Tiles of 16 channels whose gradient a warp keeps in registers. float32 takes more registers beside it.
ALGES_HOST_DEVICE constexpr int stream_most_tiles(int element_bytes) { return element_bytes == 4 ? 4 : 8; }
// Of one pixel in shared memory: its logits and four addends of ‖z‖², and what the residual then takes in their place
// (bfloat16: three parts). Odd numbers of 16 bytes, so that eight lanes' rows begin in eight different banks.
ALGES_HOST_DEVICE constexpr int stream_logit_words(int class_tiles) { return (2 * class_tiles + 1) * 4; }
ALGES_HOST_DEVICE constexpr int stream_row_words(int element_bytes, int class_tiles) {
  return element_bytes == 4 ? stream_logit_words(class_tiles) : (3 * class_tiles | 1) * 4;
}
// Lanes of a warp that add to their classes' norms at a time, each in a place of its own.
ALGES_HOST_DEVICE constexpr int stream_columns(int class_tiles) { return class_tiles == 2 ? 16 : 8; }

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;

// Fills `plan`, or says why the kernel cannot run this shape with that much shared memory.
std::string plan_tile(const Shape& shape, int shared_limit, TilePlan& plan);

// A call bound to a device: what it needs and what it does. Throws std::invalid_argument where no kernel can run it.
int shared_limit(int device);
int64_t scratch_bytes(const Call& call, int shared_limit);
// Launches on `stream` of `device` and returns; `scratch` holds scratch_bytes(call, shared_limit(device)).
void run(const Call& call, int device, void* scratch, void* stream);

}  // namespace alges::cuda_pixel_gradients
