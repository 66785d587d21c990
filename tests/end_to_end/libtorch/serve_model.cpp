// Runs a model.pt as Triton's PyTorch backend does: LibTorch without Python, inputs bound to the arguments of forward
// by name, outputs as a flat tuple. The operators come from a preloaded library (LD_PRELOAD).
//
//     serve_model MODEL INPUTS OUTPUTS
//
// INPUTS and OUTPUTS are tensor files: one text line for each tensor, "name dtype rank size size ...", an empty line,
// then the bytes of all of them in that order, row-major, little-endian, without padding. dtype is one of float16,
// float32, float64, int8, int32, int64, uint8, bool. Outputs are named output_0, output_1, ...

#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const std::map<std::string, torch::ScalarType> kDtypes = {
    {"float16", torch::kHalf}, {"float32", torch::kFloat}, {"float64", torch::kDouble}, {"int8", torch::kChar},
    {"int32", torch::kInt},    {"int64", torch::kLong},    {"uint8", torch::kByte},     {"bool", torch::kBool},
};

[[noreturn]] void fail(const std::string& message) {
    throw std::runtime_error(message);
}

std::map<std::string, torch::Tensor> read_tensors(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail("cannot read " + path);
    std::map<std::string, torch::Tensor> tensors;
    std::vector<torch::Tensor> in_order;
    for (std::string line; std::getline(file, line) && !line.empty();) {
        std::istringstream fields(line);
        std::string name, dtype;
        size_t rank = 0;
        fields >> name >> dtype >> rank;
        std::vector<int64_t> sizes(rank);
        for (int64_t& size : sizes) fields >> size;
        if (!fields || kDtypes.count(dtype) == 0) fail(path + ": bad line: " + line);
        in_order.push_back(torch::empty(sizes, kDtypes.at(dtype)));
        tensors[name] = in_order.back();
    }
    for (torch::Tensor& tensor : in_order)
        file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    if (!file) fail(path + ": ends early");
    return tensors;
}

void write_tensors(const std::string& path, const std::vector<torch::Tensor>& tensors) {
    std::ofstream file(path, std::ios::binary);
    for (size_t i = 0; i < tensors.size(); ++i) {
        std::string name;
        for (const auto& [dtype, type] : kDtypes)
            if (type == tensors[i].scalar_type()) name = dtype;
        if (name.empty()) fail("output " + std::to_string(i) + " has a dtype that tensor files do not know");
        file << "output_" << i << ' ' << name << ' ' << tensors[i].dim();
        for (const int64_t size : tensors[i].sizes()) file << ' ' << size;
        file << '\n';
    }
    file << '\n';
    for (const torch::Tensor& tensor : tensors)
        file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    if (!file.flush()) fail("cannot write " + path);
}

// Arguments of forward in the order of its schema. The server binds an input that has no argument by position; here
// that is an error, and so is an argument without an input.
std::vector<torch::IValue> bind_by_name(const torch::jit::Module& model, std::map<std::string, torch::Tensor> inputs) {
    std::vector<torch::IValue> bound;
    const auto& schema = model.get_method("forward").function().getSchema();
    for (size_t i = 1; i < schema.arguments().size(); ++i) {  // 0 is self
        const std::string& name = schema.arguments()[i].name();
        const auto input = inputs.find(name);
        if (input == inputs.end()) fail("forward takes " + name + ", which is not among the inputs");
        bound.emplace_back(input->second);
        inputs.erase(input);
    }
    if (!inputs.empty()) fail("forward has no argument for the input " + inputs.begin()->first);
    return bound;
}

std::vector<torch::Tensor> flat_outputs(const torch::IValue& result) {
    if (result.isTensor()) return {result.toTensor().contiguous()};
    if (!result.isTuple()) fail("forward returned " + result.tagKind() + ", expected a tensor or a flat tuple of them");
    std::vector<torch::Tensor> tensors;
    for (const torch::IValue& element : result.toTupleRef().elements()) {
        if (!element.isTensor()) fail("forward returned a tuple with " + element.tagKind() + " in it");
        tensors.push_back(element.toTensor().contiguous());
    }
    return tensors;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) {
        std::cerr << "usage: serve_model MODEL INPUTS OUTPUTS\n";
        return 2;
    }
    try {
        const torch::InferenceMode inference;
        torch::jit::Module model = torch::jit::load(arguments[1], torch::kCPU);
        model.eval();
        write_tensors(arguments[3], flat_outputs(model.forward(bind_by_name(model, read_tensors(arguments[2])))));
        return 0;
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
