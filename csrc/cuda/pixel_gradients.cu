#include "cuda/pixel_gradients.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/pixel_gradients_finish.cuh"
#include "cuda/pixel_gradients_tile.cuh"

namespace alges::cuda_pixel_gradients {
namespace {

void launch_tile(const Pass& pass, const TilePlan& plan, int64_t images, void* stream) {
  const dim3 grid(static_cast<unsigned>(images * plan.cut.chunks), plan.groups);
  switch (pass.call.features.dtype) {
    case Dtype::float32: launch(tile_kernel<float>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
    case Dtype::float16: launch(tile_kernel<Half>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
    case Dtype::bfloat16: launch(tile_kernel<Bfloat16>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
  }
}

// The plan of one call: a stream kernel where the call is for it, else a tile kernel.
struct Plan {
  bool streams;
  StreamPlan stream;
  TilePlan tile;

  const Cut& cut() const { return streams ? stream.cut : tile.cut; }
};

Plan plan_or_throw(const Call& call, int shared_limit) {
  Plan plan;
  plan.streams = plan_stream(call, shared_limit, plan.stream).empty();
  if (!plan.streams) {
    const std::string reason = plan_tile(call.shape, shared_limit, plan.tile);
    if (!reason.empty()) throw std::invalid_argument(reason);
  }
  return plan;
}

void launch_main(const Pass& pass, const Plan& plan, int64_t images, void* stream) {
  if (!plan.streams)
    launch_tile(pass, plan.tile, images, stream);
  else if (pass.call.features.dtype == Dtype::float32)
    launch_stream_float32(pass, plan.stream, images, stream);
  else
    launch_stream_bfloat16(pass, plan.stream, images, stream);
}

}  // namespace

int shared_limit(int device) { return shared_memory_limit(device); }

int64_t scratch_bytes(const Call& call, int shared_limit) {
  const Cut cut = plan_or_throw(call, shared_limit).cut();
  return cut.images_a_launch * cut.chunks * cut.words * 4;
}

void run(const Call& call, int device, void* scratch, void* stream) {
  const Plan plan = plan_or_throw(call, shared_limit(device));
  const Cut& cut = plan.cut();
  use_device(device);
  Pass pass{};
  pass.call = call;
  pass.scratch = static_cast<float*>(scratch);
  pass.needs_norm = call.semantic != nullptr || call.norm_map != nullptr;
  pass.needs_prediction = call.residual.data == nullptr || call.semantic != nullptr || call.semantic_vector != nullptr ||
                          call.class_pixels != nullptr || call.entropy != nullptr || call.margin != nullptr ||
                          call.confidence != nullptr;
  for (int reading = 0; reading < 2; ++reading) {
    // The second reading is for semantic_vector beside image.
    pass.vector = reading == 1 || call.image == nullptr;
    pass.outer = pass.vector ? call.semantic_vector != nullptr : true;
    pass.scores = reading == 0;
    if (reading == 1) {
      if (call.image == nullptr || call.semantic_vector == nullptr) break;
      pass.needs_norm = false;
      pass.call.norm_map = nullptr;
    }
    for (pass.first_image = 0; pass.first_image < call.shape.batch; pass.first_image += cut.images_a_launch) {
      const int64_t images = std::min(cut.images_a_launch, call.shape.batch - pass.first_image);
      launch_main(pass, plan, images, stream);
      const dim3 grid(static_cast<unsigned>((cut.words + kFinishThreads - 1) / kFinishThreads),
                      static_cast<unsigned>(images));
      launch(finish_kernel, grid, kFinishThreads, 0, stream, pass, cut);
    }
  }
}

}  // namespace alges::cuda_pixel_gradients
