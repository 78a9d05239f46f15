// Python's view of csrc/cuda/seeding.h: addresses as integers. alges_fast/seeding/cuda.py checks and allocates.
#include <pybind11/pybind11.h>

#include "cuda/seeding.h"
#include "seeding_bindings.h"

namespace py = pybind11;

namespace alges {
namespace {

using cuda_seeding::Seeding;

template <typename T>
T* address(uintptr_t pointer) {
  return reinterpret_cast<T*>(pointer);
}

}  // namespace

// Types are local to the module: the tests load these bindings a second time, over the emulation.
void bind_cuda_seeding(py::module_& m) {
  m.attr("cuda_seeding_candidate_bytes") = sizeof(Candidate);
  m.def("cuda_seeding_resident_blocks",
        [](const std::string& type, int device) { return cuda_seeding::resident_blocks(point_type(type), device); });
  py::class_<Seeding>(m, "CudaSeeding", py::module_local())
      .def(py::init([](uintptr_t points, const std::string& type, int64_t rows, int64_t columns, int64_t stride,
                       int64_t first_index, uintptr_t index, uintptr_t min_sq_distance, uintptr_t weights,
                       uintptr_t nearest, int blocks, int tile) {
        Seeding seeding{shard_of(points, type, rows, columns, stride, first_index, index, min_sq_distance, weights, nearest)};
        seeding.blocks = blocks;
        seeding.tile = tile;
        return seeding;
      }))
      .def("draw",
           [](Seeding& seeding, const std::string& rule, uint64_t seed, uint32_t round, int trials, uintptr_t partials) {
             seeding.rule = draw_rule(rule);
             seeding.seed = seed;
             seeding.round = round;
             seeding.trials = trials;
             seeding.partials = address<Candidate>(partials);
           })
      .def("run",
           [](Seeding seeding, uintptr_t centres, int count, int first_number, uintptr_t tried, int device, uintptr_t stream) {
             seeding.centres = address<const void>(centres);
             seeding.count = count;
             seeding.first_number = first_number;
             seeding.tried = address<void>(tried);
             cuda_seeding::pass(seeding, device, address<void>(stream));
           }, py::call_guard<py::gil_scoped_release>())
      .def("chain", [](Seeding seeding, uintptr_t indices, int picks, int first_number, bool one_launch, int device,
                       uintptr_t stream) {
        seeding.first_number = first_number;
        cuda_seeding::chain(seeding, address<int64_t>(indices), picks, one_launch, device, address<void>(stream));
      }, py::call_guard<py::gil_scoped_release>());
}

}  // namespace alges
