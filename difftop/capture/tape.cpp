// Operators with their arguments, called one after another without Python in between.

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/extension.h>

struct Call {
  c10::OperatorHandle op;
  torch::jit::Stack arguments;
  std::vector<std::optional<at::Tensor>> made;  // where results are copied to
};

struct Tape {
  std::vector<Call> calls;

  void add(const std::string& name, const std::string& overload, const py::args& arguments, const py::kwargs& named) {
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
    calls.push_back({op, torch::jit::createStackForSchema(op.schema(), arguments, named, std::nullopt), {}});
  }

  void copy_to(std::vector<std::optional<at::Tensor>> made) { calls.back().made = std::move(made); }

  void replay() const {
    py::gil_scoped_release release;
    c10::InferenceMode guard;
    torch::jit::Stack stack;
    for (const auto& call : calls) {
      stack = call.arguments;
      call.op.callBoxed(&stack);
      for (size_t i = 0; i < call.made.size(); ++i) {
        if (call.made[i].has_value()) call.made[i]->copy_(stack[i].toTensor());
      }
    }
  }
};

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Tape>(module, "Tape")
      .def(py::init<>())
      .def("add", &Tape::add)
      .def("copy_to", &Tape::copy_to)
      .def("replay", &Tape::replay);
}
