#include "cpu/pixel_gradients.h"
#include "cpu/team.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

namespace alges {
namespace {

// Bytes: of one thread's features, residuals and transposed features, preferably and at most; of all the sums of one
// image's chunks; of weights rearranged once for all threads.
constexpr int64_t kBlockGoal = 512 << 10, kBlockLimit = 768 << 10, kPartialLimit = 224 << 10, kWeightLimit = 128 << 10;
// Bytes of a hidden layer's weights and of the inputs of kGroup positions, each: beside a block they fit in L2.
constexpr int64_t kHiddenLimit = 256 << 10;
// Bytes of products whose lanes are held apart: beside the features of a block they fit in L2.
constexpr int64_t kLaneLimit = 192 << 10;
constexpr int64_t kMaxChunks = 16;
// Blocks of a chunk whose lanes are folded, at least: the fold then takes a fiftieth of their time.
constexpr int64_t kFoldedBlocks = 4;
// From so many images a thread on, a thread does whole images: nobody waits for others but at the end.
constexpr int64_t kWholeImages = 8;
// A thread takes so great a part of its share of the chunks in turn, so that a late one holds up nobody for long.
constexpr int64_t kTurns = 3;
// Below this many flops waking threads costs more than it saves.
constexpr double kSerialFlops = 2e6;

constexpr int64_t kWidest = 16;    // floats in a vector of the widest instruction set
constexpr int64_t kPartOfWidest = 8;  // floats of one sum in it
constexpr int64_t kLargestTile = 16;

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Whether one stride walks all three axes in order.
bool one_run(const Operand& operand, const int64_t* size) {
  const int64_t* stride = operand.stride + 2;
  return !operand.data || ((size[1] == 1 || stride[1] == size[2] * stride[2]) &&
                           (size[0] == 1 || stride[0] == size[1] * (size[1] == 1 ? size[2] * stride[2] : stride[1])));
}

// With a 1 x 1 kernel neighbours do not matter: one long row instead of many short ones where the strides allow it.
void flatten(PixelGradientsCall& call) {
  if (call.kernel[0] * call.kernel[1] * call.kernel[2] != 1 || call.rows) return;
  Operand* operands[] = {&call.features, &call.logits, &call.residual, &call.valid};
  for (const Operand* operand : operands)
    if (!one_run(*operand, call.size)) return;
  // An axis of size 1 has no stride to speak of: the row takes that of the last axis that is longer.
  for (Operand* operand : operands) {
    int axis = 2;
    while (axis > 0 && call.size[axis] == 1) --axis;
    if (call.size[axis] > 1) operand->stride[4] = operand->stride[2 + axis];
  }
  call.size[2] *= call.size[0] * call.size[1];
  call.size[0] = call.size[1] = 1;
}

struct Layout {
  int64_t size = 0;
  int64_t take(int64_t floats) {
    const int64_t at = size;
    size += round_up(floats, kWidest);
    return at;
  }
};

// Parts that so many terms, of so many channels, are added up in.
int64_t runs_of(int64_t terms, int64_t channels) {
  return terms <= kTerms * 4 / 3 ? 1 : std::min(channels, (terms + kTerms - 1) / kTerms);
}

bool make_plan(const PixelGradientsCall& call, PixelGradientsPlan& plan, std::vector<int64_t>& offsets) {
  const int64_t *kernel = call.kernel, K = call.classes, d = call.channels;
  plan.taps = kernel[0] * kernel[1] * kernel[2];
  plan.pitch = call.size[2] + kernel[2] / 2;
  plan.plane = plan.pitch * call.size[1];
  plan.padded_channels = round_up(d, kWidest);
  plan.runs = runs_of(d * plan.taps, d);
  plan.hidden_runs = runs_of(call.inputs, call.inputs);
  plan.hidden_packed = round_up(d * call.inputs, kWidest);
  if (call.rows && (!call.hidden_weight || call.size[0] > 1 || call.features.stride[1] != 1)) return false;
  plan.widest = call.rows ? (call.size[2] + call.columns - 1) / call.columns : 0;
  if (call.hidden_weight && (plan.taps > 1 || std::max(d, kGroup) * call.inputs * 4 > kHiddenLimit)) return false;
  plan.norms = call.semantic || call.norm_map;
  plan.predict = call.need_prediction(call.residual.data != nullptr);
  plan.shared_weights = K * d * plan.taps * 4 <= kWeightLimit;

  plan.along_positions = plan.taps == 1 && !call.rows && K * plan.padded_channels * kPartOfWidest * 4 <= kLaneLimit;
  plan.step = plan.along_positions ? kLongStep : kShortStep;
  const int64_t columns = plan.along_positions && !call.semantic_vector ? 0 : 2 * kWidest;

  // The largest block that fits; rows of the kernel apart where that takes less than what lies between them; room for the
  // next block's features where blocks stay large.
  const int64_t largest = std::min(plan.taps == 1 ? plan.step : 16 * plan.step, round_up(plan.plane, kGroup));
  plan.ahead = plan.taps == 1 && !call.hidden_weight && largest < plan.plane;
  for (plan.block = largest;; plan.block = round_up(plan.block / 2, kGroup)) {
    if (plan.ahead && plan.block < kShortStep) {
      plan.ahead = false;
      plan.block = largest;
    }
    const int64_t together = round_up(plan.block + (kernel[1] - 1) * plan.pitch + kernel[2] - 1, kWidest);
    const int64_t apart = round_up(plan.block + kernel[2] - 1, kWidest);
    plan.rows_apart = kernel[1] * apart < together;
    plan.window = plan.rows_apart ? apart : together;
    plan.windows = kernel[0] * (plan.rows_apart ? kernel[1] : 1);
    // Rows of features an odd number of cache lines apart, so that they do not share the same few sets.
    if (plan.windows * plan.window / kWidest % 2 == 0) plan.window += plan.windows % 2 ? kWidest : 0;
    const int64_t loaded = plan.windows * plan.window;
    const int64_t bytes = (d * loaded * (plan.ahead ? 2 : 1) + K * round_up(plan.block, plan.step) + columns * loaded + plan.widest) * 4;
    if (bytes <= kBlockGoal) break;
    if (plan.block == kGroup && bytes > kBlockLimit) return false;
    if (plan.block == kGroup) break;
  }
  plan.plane_blocks = (plan.plane + plan.block - 1) / plan.block;

  offsets.clear();
  for (int64_t z = 0; z < kernel[0]; ++z)
    for (int64_t y = 0; y < kernel[1]; ++y)
      for (int64_t x = 0; x < kernel[2]; ++x)
        offsets.push_back(plan.rows_apart ? (z * kernel[1] + y) * plan.window + x : z * plan.window + y * plan.pitch + x);
  plan.offset = offsets.data();

  const int64_t loaded = plan.windows * plan.window, block = round_up(plan.block, plan.step);
  Layout layout;
  auto& at = plan.scratch;
  at.features = layout.take(d * std::max(loaded, plan.taps));
  at.spare = layout.take(plan.ahead ? d * loaded : 0);
  at.loaded = layout.take(sizeof(PixelGradientsLoaded) / sizeof(float));
  at.residual = layout.take(K * block);
  at.columns = layout.take(columns * loaded);
  at.squares = layout.take(loaded);
  at.patch_squares = layout.take(std::max(loaded, block));
  at.norms = layout.take(block);
  at.own_residual = layout.take(block);
  at.best = layout.take(plan.step);
  at.inverse = layout.take(plan.step);
  at.entropy = layout.take(call.class_entropy ? plan.step : 0);
  at.prediction = layout.take(plan.widest + block);
  at.mask = layout.take(block);
  at.class_sums = layout.take(K * kWidest);
  at.class_counts = layout.take(K * kWidest);
  at.class_vectors = layout.take(K * kWidest);
  at.lane_sums = layout.take(plan.along_positions ? plan.padded_channels * K * kPartOfWidest : 0);
  at.weights = layout.take(plan.shared_weights ? 0 : std::min(K, kLargestTile) * ((d + plan.runs - 1) / plan.runs) * plan.taps);
  at.inputs = layout.take(call.inputs * kGroup);
  at.size = layout.size;
  return true;
}

struct Free {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<float[], Free>;
Buffer allocate(int64_t floats) {
  return Buffer(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64))));
}

// How an image's sums are held until they are complete: `chunks` partials, one after the other, doubles first and then the
// float32 sums. Where these are large there is one, and it is the output itself, in another order of taps and channels.
struct Partials {
  int64_t classes, sums, doubles, floats, chunks;
  bool in_place;

  Partials(const PixelGradientsCall& call, const PixelGradientsPlan& plan)
      : classes(call.classes),
        sums(plan.taps * call.classes * call.channels),
        doubles(round_up(kScores + classes * (2 + (call.class_mass != nullptr) + (call.class_entropy != nullptr)) +
                             (call.feature_sum ? call.channels : 0),
                         8)),
        // Whole vectors: the doubles of the next partial stay aligned.
        floats(round_up(2 * doubles + sums * ((call.image != nullptr) + (call.semantic_vector != nullptr)), kWidest)),
        chunks(std::min({kMaxChunks, pieces(call, plan), kPartialLimit / (4 * floats)})),
        in_place(chunks <= 1) {
    chunks = std::max<int64_t>(chunks, 1);
    if (in_place) floats = 2 * doubles;
  }

  // As many chunks as are worth it: products along positions end with a fold of every lane of every sum.
  static int64_t pieces(const PixelGradientsCall& call, const PixelGradientsPlan& plan) {
    const int64_t blocks = call.size[0] * plan.plane_blocks;
    return plan.along_positions ? round_up(blocks, kFoldedBlocks) / kFoldedBlocks : blocks;
  }

  // The doubles of a partial by name.
  PixelGradientsPartial named(const PixelGradientsCall& call, double* scores) const {
    PixelGradientsPartial partial{};
    double* next = scores;
    const auto take = [&](int64_t n) {
      double* const at = next;
      next += n;
      return at;
    };
    partial.scores = take(kScores);
    partial.semantic = take(classes);
    partial.class_pixels = take(classes);
    if (call.class_mass) partial.class_mass = take(classes);
    if (call.class_entropy) partial.class_entropy = take(classes);
    if (call.feature_sum) partial.feature_sum = take(call.channels);
    return partial;
  }

  PixelGradientsPartial at(const PixelGradientsCall& call, float* buffer, int64_t index, int64_t image) const {
    float* const start = buffer + index * floats;
    float* const first = start + 2 * doubles;
    PixelGradientsPartial partial = named(call, reinterpret_cast<double*>(start));
    if (call.image) partial.image = in_place ? call.image + image * sums : first;
    if (call.semantic_vector)
      partial.semantic_vector = in_place ? call.semantic_vector + image * sums : first + (call.image ? sums : 0);
    return partial;
  }

  void zero(const PixelGradientsPartial& partial) const {
    std::fill_n(partial.scores, doubles, 0.0);
    if (partial.image) std::fill_n(partial.image, sums, 0.0f);
    if (partial.semantic_vector) std::fill_n(partial.semantic_vector, sums, 0.0f);
  }
};

// (K, d, taps) from the chunks' (K, taps, d), one of which may be the output; a class at a time through `scratch`.
void combine(const PixelGradientsCall& call, const PixelGradientsPlan& plan, const float* const* sums, double scale, float* scratch,
             float* to) {
  const int64_t per_class = plan.taps * call.channels;
  for (int64_t k = 0; k < call.classes; ++k) {
    for (int64_t i = 0; i < per_class; ++i) {
      double total = 0;
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) total += sums[chunk][k * per_class + i];
      scratch[i] = static_cast<float>(total * scale);
    }
    for (int64_t c = 0; c < call.channels; ++c)
      for (int64_t t = 0; t < plan.taps; ++t) *to++ = scratch[t * call.channels + c];
  }
}

template <class T>
void write(T* output, const double* sums, int64_t image, int64_t n) {
  if (output) std::transform(sums, sums + n, output + image * n, [](double sum) { return static_cast<T>(sum); });
}

void finish(const PixelGradientsCall& call, const PixelGradientsPlan& plan, const Partials& partials, float* buffer, float* scratch,
            int64_t first, int64_t image) {
  std::vector<double> doubles(partials.doubles);
  const float *sums[kMaxChunks], *vectors[kMaxChunks];
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const PixelGradientsPartial partial = partials.at(call, buffer, first + chunk, image);
    for (int64_t i = 0; i < partials.doubles; ++i) doubles[i] += partial.scores[i];
    sums[chunk] = partial.image;
    vectors[chunk] = partial.semantic_vector;
  }
  const PixelGradientsPartial total = partials.named(call, doubles.data());
  const int64_t per_image = call.classes * call.channels * plan.taps;
  if (call.image) combine(call, plan, sums, 1 / std::max(total.scores[kValidPixels], 1.0), scratch, call.image + image * per_image);
  if (call.semantic_vector) combine(call, plan, vectors, 1, scratch, call.semantic_vector + image * per_image);
  write(call.semantic, total.semantic, image, call.classes);
  write(call.class_pixels, total.class_pixels, image, call.classes);
  write(call.entropy, total.scores + kEntropy, image, 1);
  write(call.margin, total.scores + kMargin, image, 1);
  write(call.confidence, total.scores + kConfidence, image, 1);
  write(call.class_mass, total.class_mass, image, call.classes);
  write(call.class_entropy, total.class_entropy, image, call.classes);
  write(call.feature_sum, total.feature_sum, image, call.channels);
}

// Everything decided before the first byte is read.
struct Work {
  PixelGradientsCall call;
  PixelGradientsPlan plan;
  std::vector<int64_t> offsets;
  bool fits;
  int threads;
  bool whole_images;  // an image is done by one thread
  int64_t group;      // images whose partials are held at one time
  int64_t packed_floats, partial_floats, total_floats;

  explicit Work(const PixelGradientsCall& given) : call(given) {
    flatten(call);
    fits = make_plan(call, plan, offsets);
    if (!fits) return;
    const Partials partials(call, plan);
    plan.chunks = call.rows ? 1 : partials.chunks;
    const double per_position = 4.0 * call.classes * call.channels * plan.taps + 2.0 * call.channels * call.inputs;
    const double flops = per_position * call.batch * call.size[0] * plan.plane;
    threads = flops < kSerialFlops ? 1 : static_cast<int>(std::min<int64_t>(call.threads, call.batch * plan.chunks));
    whole_images = call.batch >= kWholeImages * threads;
    group = whole_images ? threads : std::min(call.batch, std::max<int64_t>(1, threads * kPartialLimit / (plan.chunks * partials.floats * 4)));
    packed_floats = plan.hidden_packed + (plan.shared_weights ? round_up(call.classes * call.channels * plan.taps, kWidest) : 0);
    partial_floats = call.rows ? 0 : round_up(group * plan.chunks * partials.floats, kWidest);
    total_floats = packed_floats + partial_floats + threads * plan.scratch.size;
  }
};

}  // namespace

int64_t pixel_gradients_scratch(PixelGradientsCall call) {
  const Work work(call);
  return work.fits ? work.total_floats * static_cast<int64_t>(sizeof(float)) : 0;
}

void pixel_gradients(PixelGradientsCall given) {
  const Work work(given);
  const PixelGradientsCall& call = work.call;
  const PixelGradientsPlan& plan = work.plan;
  const Partials partials(call, plan);
  const Buffer buffer = allocate(work.total_floats);
  float *const packed = buffer.get(), *const sums = packed + work.packed_floats, *const scratch = sums + work.partial_floats;

  for (int thread = 0; thread < work.threads; ++thread)
    *reinterpret_cast<PixelGradientsLoaded*>(scratch + thread * plan.scratch.size + plan.scratch.loaded) = {-1, -1, nullptr};
  if (work.packed_floats) ALGES_DISPATCH(pack_weights(call, plan, packed));
  if (call.rows) {
    share_out(call.batch, work.threads, [&](int64_t image, int worker) {
      ALGES_DISPATCH(window_sums(call, plan, image, packed, scratch + worker * plan.scratch.size));
    });
    return;
  }
  const auto add_up = [&](int64_t image, int64_t chunk, int64_t index, float* mine) {
    const PixelGradientsPartial partial = partials.at(call, sums, index, image);
    partials.zero(partial);
    ALGES_DISPATCH(accumulate(call, plan, image, chunk, packed, mine, partial));
  };
  if (work.whole_images) {
    share_out(call.batch, work.threads, [&](int64_t image, int worker) {
      const int64_t first = worker * plan.chunks;
      float* const mine = scratch + worker * plan.scratch.size;
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) add_up(image, chunk, first + chunk, mine);
      finish(call, plan, partials, sums, mine, first, image);
    });
    return;
  }
  for (int64_t begin = 0; begin < call.batch; begin += work.group) {
    const int64_t images = std::min(work.group, call.batch - begin), tasks = images * plan.chunks;
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
    {
      float* const mine = scratch + thread_number() * plan.scratch.size;
      // A thread that goes on with the next chunk has its first block already: many chunks in turn, fewer towards the end.
      for (int64_t first = 0; first < tasks;) {
        const int64_t end = first + std::max<int64_t>(1, (tasks - first) / (work.threads * kTurns));
        if (!taken.compare_exchange_strong(first, end)) continue;
        for (int64_t task = first; task < end; ++task) add_up(begin + task / plan.chunks, task % plan.chunks, task, mine);
        first = taken;
      }
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < images; ++i) finish(call, plan, partials, sums, mine, i * plan.chunks, begin + i);
    }
  }
}

}  // namespace alges
