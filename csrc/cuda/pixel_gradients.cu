#include "cuda/pixel_gradients.h"

#include <algorithm>
#include <stdexcept>

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

TilePlan plan_or_throw(const Call& call, int shared_limit) {
  TilePlan plan;
  const std::string reason = plan_tile(call.shape, shared_limit, plan);
  if (!reason.empty()) throw std::invalid_argument(reason);
  return plan;
}

}  // namespace

int shared_limit(int device) { return shared_memory_limit(device); }

int64_t scratch_bytes(const Call& call, int shared_limit) {
  const Cut cut = plan_or_throw(call, shared_limit).cut;
  return cut.images_a_launch * cut.chunks * cut.words * 4;
}

void run(const Call& call, int device, void* scratch, void* stream) {
  const TilePlan plan = plan_or_throw(call, shared_limit(device));
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
    for (pass.first_image = 0; pass.first_image < call.shape.batch; pass.first_image += plan.cut.images_a_launch) {
      const int64_t images = std::min(plan.cut.images_a_launch, call.shape.batch - pass.first_image);
      launch_tile(pass, plan, images, stream);
      const dim3 grid(static_cast<unsigned>((plan.cut.words + kFinishThreads - 1) / kFinishThreads),
                      static_cast<unsigned>(images));
      launch(finish_kernel, grid, kFinishThreads, 0, stream, pass, plan.cut);
    }
  }
}

}  // namespace alges::cuda_pixel_gradients
