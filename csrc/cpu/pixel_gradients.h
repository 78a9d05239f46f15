// pixel_gradients on the CPU: the call, how it is cut into pieces, and the kernel that does a piece.
//
// An image is a run of positions, cut into blocks whose features fit in the cache; a chunk is a fixed run of blocks with
// sums of its own (a partial), done by one thread; the chunks of an image are added in order, in double. The cut depends
// on the shapes alone, so results depend neither on the number of threads nor on the rest of the batch.
#pragma once

#include <cstdint>

#include "call.h"
#include "cpu/isa.h"

namespace alges {

struct PixelGradientsCall : Outputs {
  int64_t batch, channels, classes;
  int64_t size[3], kernel[3];  // D, H, W
  Operand features, logits, residual, valid;
  const float* weight;  // (K, d, *kernel)
  const float* bias;    // (K,) or null
  // A hidden layer of pixels in front of it: `features` are then its inputs, of so many channels, and the last layer's
  // input relu(hidden_weight * inputs + hidden_bias) is made block by block. With a 1 x 1 kernel alone.
  int64_t inputs = 0;
  const float* hidden_weight = nullptr;  // (d, inputs), null where there is none
  const float* hidden_bias = nullptr;    // (d,) or null
  // A grid of windows over images of one plane, row by row; their sides differ by at most one. Behind a hidden layer alone,
  // whose inputs have a pixel's channels together. `image` is then (B, rows columns, K, d), and no other output but
  // `outline` is asked for: (B, rows columns), how many neighbours inside a window, side by side or one above the other,
  // differ in prediction.
  int64_t rows = 0, columns = 0;  // 0 where there are none
  float* outline = nullptr;
  int threads;
};

constexpr int64_t kGroup = 32;  // positions done together: two vectors of the widest set
// Positions whose residuals stay in L1 from logits to products, with channels and with positions along the lanes of the
// products.
constexpr int64_t kShortStep = 128, kLongStep = 256;
// Terms of a dot product added one after the other; longer ones are sums of such runs, as accurate as a blocked product.
constexpr int64_t kTerms = 48;

// Positions: the rows of a plane one after the other, each followed by kernel width / 2 zeros. A tap of the kernel is then
// a constant distance, and no inner loop sees the end of a row; residuals at the zeros in between are 0.
struct PixelGradientsPlan {
  int64_t taps;
  int64_t pitch;            // positions from one row to the next
  int64_t plane;            // positions in a plane
  int64_t block;            // positions in a block, a multiple of kGroup
  bool ahead;               // a block's features are loaded during the work on the one before
  int64_t plane_blocks;     // blocks in a plane
  int64_t chunks;           // per image
  int64_t step;             // positions of a block whose residuals are made together
  bool along_positions;     // products with positions along the lanes: no transpose, but a vector for every sum
  int64_t windows;          // stretches of features a block reads: one per plane of the kernel, or one per row
  int64_t window;           // positions in a window, a multiple of 16
  bool rows_apart;          // windows are per row of the kernel
  const int64_t* offset;    // (taps,): where the tap of a block's first position lies in the windows
  int64_t padded_channels;  // d rounded up to 16
  int64_t runs;             // parts that dot products over channels and taps are added up in
  bool predict, norms;      // whether anything needs the prediction; whether anything needs norms
  int64_t hidden_runs;      // the same of the hidden layer
  int64_t hidden_packed;    // floats of its weights, rearranged, in front of the last layer's
  int64_t widest;           // pixels across the widest window, 0 where there are none
  bool shared_weights;      // weights are rearranged once; otherwise, being large, by each thread as it needs them

  // A thread's scratch, as offsets in floats, and its size.
  struct {
    int64_t features, spare, loaded, residual, columns, squares, patch_squares, norms, own_residual, best, inverse, entropy, prediction, mask;
    int64_t class_sums, class_counts, class_vectors, lane_sums, weights, inputs, size;
  } scratch;
};

// Which block's features a thread has loaded ahead, in its scratch.
struct PixelGradientsLoaded {
  int64_t image, block;
  const float* features;
};

// Sums over the pixels of one chunk.
struct PixelGradientsPartial {
  double* scores;           // entropy, margin, confidence, valid pixels
  double* semantic;         // (K,)
  double* class_pixels;     // (K,); exact, being below 2^53
  double* class_mass;       // (K,), (K,) and (d,); null where not asked for
  double* class_entropy;
  double* feature_sum;
  float* image;             // (K, taps, d), zero at the start
  float* semantic_vector;   // the same
};
enum Score { kEntropy, kMargin, kConfidence, kValidPixels, kScores };

// Bytes of scratch the call takes; 0 where no block of these inputs fits the limit, and the call cannot run.
int64_t pixel_gradients_scratch(PixelGradientsCall call);
void pixel_gradients(PixelGradientsCall call);

#define ALGES_DECLARE(isa)                                                                                       \
  namespace isa {                                                                                                \
  void pack_weights(const PixelGradientsCall&, const PixelGradientsPlan&, float* packed);                        \
  void accumulate(const PixelGradientsCall&, const PixelGradientsPlan&, int64_t image, int64_t chunk,            \
                  const float* packed, float* scratch, const PixelGradientsPartial&);                            \
  void window_sums(const PixelGradientsCall&, const PixelGradientsPlan&, int64_t image, const float* packed,     \
                   float* scratch);                                                                              \
  }
ALGES_FOR_EACH_ISA(ALGES_DECLARE)
#undef ALGES_DECLARE

}  // namespace alges
