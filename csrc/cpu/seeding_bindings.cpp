#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/seeding.h"
#include "seeding_bindings.h"

namespace py = pybind11;

namespace alges {
namespace {

// (keys, global indices, positions, largest D^2, rows measured in full)
py::tuple result(const SeedingPool& pool, const Pass& pass) {
  py::list keys, indices, positions;
  for (const Candidate& candidate : pool.candidates()) {
    keys.append(candidate.key);
    indices.append(candidate.index);
    positions.append(candidate.position);
  }
  return py::make_tuple(keys, indices, positions, pass.largest, pass.measured);
}

}  // namespace

void bind_seeding(py::module_& m) {
  py::class_<Draw>(m, "SeedingDraw")
      .def(py::init([](const std::string& rule, uint64_t seed, uint32_t round, int trials) {
        return Draw{draw_rule(rule), seed, round, trials};
      }));
  // Addresses are held, not what lies there: alges_fast/seeding/native.py keeps the tensors alive.
  py::class_<SeedingPool>(m, "SeedingPool")
      .def(py::init([](uintptr_t points, const std::string& type, int64_t rows, int64_t columns, int64_t stride,
                       int64_t first_index, uintptr_t index, uintptr_t min_sq_distance, uintptr_t weights,
                       uintptr_t nearest, bool sketch) {
        return new SeedingPool(shard_of(points, type, rows, columns, stride, first_index, index, min_sq_distance, weights,
                                        nearest),
                               sketch);
      }))
      .def("absorb",
           [](SeedingPool& pool, uintptr_t centres, int count, const Draw& draw, int threads) {
             Pass pass;
             {
               py::gil_scoped_release release;
               pass = pool.absorb(reinterpret_cast<const void*>(centres), count, draw, threads);
             }
             return result(pool, pass);
           })
      // Global indices of up to `count` picks, the first of them what the last pass drew.
      .def("chain",
           [](SeedingPool& pool, Draw draw, int count, int threads) {
             std::vector<int64_t> indices;
             for (; count > 0 && pool.candidates().front().index >= 0; --count) {
               indices.push_back(pool.candidates().front().index);
               draw.round += 1;
               {
                 py::gil_scoped_release release;
                 pool.absorb_candidate(draw, threads);
               }
               if (PyErr_CheckSignals() != 0) throw py::error_already_set();
             }
             return indices;
           })
      .def("potentials",
           [](SeedingPool& pool, uintptr_t centres, int count, double scale, int threads) {
             py::gil_scoped_release release;
             return pool.potentials(reinterpret_cast<const void*>(centres), count, scale, threads);
           })
      .def("accept", [](SeedingPool& pool, int trial, const Draw& draw, int threads) {
        Pass pass;
        {
          py::gil_scoped_release release;
          pass = pool.accept(trial, draw, threads);
        }
        return result(pool, pass);
      });
}

}  // namespace alges
