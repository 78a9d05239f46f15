#include "cuda/pixel_gradients.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/pixel_gradients_finish.cuh"
#include "cuda/pixel_gradients_tile.cuh"

namespace alges::cuda_pixel_gradients {
namespace {

void launch_tile(const Pass& pass, const TilePlan& plan, int64_t images, void* stream) {
  const dim3 grid(static_cast<unsigned>(images * plan.cut.chunks), plan.groups);
  switch (pass.call.features.type) {
    case Type::float32: launch(tile_kernel<float>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
    case Type::float16: launch(tile_kernel<Half>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
    case Type::bfloat16: launch(tile_kernel<Bfloat16>, grid, kTileThreads, plan.shared_bytes, stream, pass, plan); break;
    case Type::boolean: throw std::invalid_argument("features of type bool");
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
  else if (pass.call.features.type == Type::float32)
    launch_stream_float32(pass, plan.stream, images, stream);
  else
    launch_stream_bfloat16(pass, plan.stream, images, stream);
}

// All images, as many a launch as scratch holds.
void read(Pass& pass, const Plan& plan, void* stream) {
  const Cut& cut = plan.cut();
  for (pass.first_image = 0; pass.first_image < pass.call.shape.batch; pass.first_image += cut.images_a_launch) {
    const int64_t images = std::min(cut.images_a_launch, pass.call.shape.batch - pass.first_image);
    launch_main(pass, plan, images, stream);
    const int64_t words_a_block = kFinishThreads / kFinishLanes;
    const dim3 grid(static_cast<unsigned>((cut.words + words_a_block - 1) / words_a_block), static_cast<unsigned>(images));
    launch(finish_kernel, grid, kFinishThreads, 0, stream, pass, cut);
  }
}

}  // namespace

int shared_limit(int device) { return shared_memory_limit(device); }

int64_t scratch_bytes(const Call& call, int shared_limit) {
  const Cut cut = plan_or_throw(call, shared_limit).cut();
  return cut.images_a_launch * cut.chunks * cut.words * 4;
}

void run(const Call& call, int device, void* scratch, void* stream) {
  const Plan plan = plan_or_throw(call, shared_limit(device));
  use_device(device);
  Pass pass{};
  pass.call = call;
  pass.scratch = static_cast<float*>(scratch);

  const bool of_r = call.image || call.semantic || call.semantic_vector || call.norm_map || call.class_pixels ||
                    call.entropy || call.margin || call.confidence;
  if (of_r) {
    pass.outer = call.image || call.semantic_vector;
    pass.vector = !call.image;
    pass.scores = true;
    pass.needs_norm = call.semantic || call.norm_map;
    pass.by_prediction = call.semantic || call.class_pixels;
    pass.confidences = call.entropy || call.margin || call.confidence;
    pass.needs_prediction = call.need_prediction(call.residual.data != nullptr);
    read(pass, plan, stream);
  }
  pass.call.norm_map = nullptr;
  pass.scores = pass.needs_norm = pass.by_prediction = pass.confidences = false;
  if (call.image && call.semantic_vector) {
    pass.vector = true;
    read(pass, plan, stream);
  }
  if (call.class_mass || call.class_entropy || call.feature_sum) {
    pass.outer = pass.vector = false;
    pass.by_class = true;
    pass.needs_prediction = call.class_mass || call.class_entropy;
    read(pass, plan, stream);
  }
}

}  // namespace alges::cuda_pixel_gradients
