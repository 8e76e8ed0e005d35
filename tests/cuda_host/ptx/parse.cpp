// Parses PTX text to instructions. Unknown text is an error; only debug directives are skipped.
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>

#include "machine.h"

namespace ptx {

namespace {

std::string_view strip(std::string_view s, std::string_view of = " \t\r\n;") {
  const auto begin = s.find_first_not_of(of);
  return begin == s.npos ? std::string_view() : s.substr(begin, s.find_last_not_of(of) - begin + 1);
}

// Splits `s` at `by`, except inside of braces or brackets.
Words split(std::string_view s, char by) {
  Words out;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= s.size(); ++i) {
    if (i < s.size() && (s[i] == '{' || s[i] == '[')) ++depth;
    if (i < s.size() && (s[i] == '}' || s[i] == ']')) --depth;
    if (i == s.size() || (s[i] == by && depth == 0)) {
      if (const auto part = strip(s.substr(begin, i - begin)); !part.empty()) out.push_back(part);
      begin = i + 1;
    }
  }
  return out;
}

bool begins(std::string_view s, std::string_view with) { return s.substr(0, with.size()) == with; }

int64_t number(std::string_view s) {
  const std::string text(s);
  char* end = nullptr;
  const int64_t value =
      text[0] == '-' ? std::strtoll(text.c_str(), &end, 0) : static_cast<int64_t>(std::strtoull(text.c_str(), &end, 0));
  if (*end != 0 && *end != 'U') throw Unknown("PTX: '" + text + "' is no number");
  return value;
}

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                    std::free);
  return status == 0 ? text.get() : name;
}

// A parameter or a shared array; an extern array is the dynamic memory.
struct Variable {
  std::string name;
  uint32_t align = 1, bytes = 0;
  bool is_dynamic = false;
};

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), kernel_(std::make_unique<Kernel>()) {
    kernel_->name = name;
    kernel_->title = demangled(name);
  }

  std::unique_ptr<Kernel> parse(size_t begin) {
    module_variables(text_);
    const size_t body = text_.find('{', begin);
    header(text_.substr(begin, body - begin));
    const size_t end = text_.find("\n}", body);
    lines(text_.substr(body + 1, end - body - 1));
    for (const auto& [at, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Unknown("PTX: no label " + std::string(label));
      kernel_->code[static_cast<size_t>(at)].target = found->second;
    }
    return std::move(kernel_);
  }

 private:
  // Reads shared arrays and names of files.
  void module_variables(std::string_view text) {
    for (const char* what : {"\n.extern .shared", "\n.shared", "\n.file"}) {
      for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) {
        const auto line = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
        begins(strip(line), ".file") ? file(strip(line)) : variable(line);
      }
    }
  }

  // .file 2 "product_tile.cuh"
  void file(std::string_view line) {
    const size_t name = line.find('"');
    kernel_->files[static_cast<int>(number(strip(line.substr(5, name - 5))))] =
        line.substr(name + 1, line.find('"', name + 1) - name - 1);
  }

  // .shared .align 4 .b8 tile[256], .param .u64 name
  static Variable declaration(std::string_view line) {
    const Words words = split(strip(line), ' ');
    const std::string_view name = words.back();
    const size_t bracket = name.find('[');
    const auto elements = bracket == name.npos ? "1" : strip(name.substr(bracket), "[]");
    Variable v{std::string(name.substr(0, bracket))};
    uint32_t size = 0;
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == ".align") v.align = static_cast<uint32_t>(number(words[i + 1]));
      if (const Type type = type_of(words[i].substr(1)); type != Type::kNone)
        size = static_cast<uint32_t>(size_of(type));
    }
    v.align = std::max(v.align, size);
    v.is_dynamic = elements.empty();
    if (!v.is_dynamic) v.bytes = size * static_cast<uint32_t>(number(elements));
    return v;
  }

  void variable(std::string_view line) {
    const Variable v = declaration(line);
    variables_[v.name] = v;
  }

  void header(std::string_view text) {
    const size_t open = text.find('('), close = text.rfind(')');
    if (open != text.npos) {
      for (const auto line : split(text.substr(open + 1, close - open - 1), ',')) parameter(line);
    }
    if (const size_t at = text.find(".maxntid"); at != text.npos) {
      const Words sizes = split(text.substr(at + 8, text.find('\n', at) - at - 8), ',');
      kernel_->most_threads = 1;
      for (const auto size : sizes) kernel_->most_threads *= static_cast<uint32_t>(number(size));
    }
  }

  void parameter(std::string_view line) {
    const Variable v = declaration(line);
    const uint32_t begin = (kernel_->parameters_end + v.align - 1) / v.align * v.align;
    parameters_[v.name] = begin;
    kernel_->parameters.push_back(begin);
    kernel_->parameter_bytes.push_back(v.bytes);
    kernel_->parameters_end = begin + v.bytes;
  }

  void lines(std::string_view body) {
    for (size_t at = 0; at < body.size();) {
      const size_t end = std::min(body.find('\n', at), body.size());
      std::string_view line = body.substr(at, end - at);
      at = end + 1;
      line = strip(line.substr(0, line.find("//")));
      if (line.empty() || line == "{" || line == "}") continue;
      if (line.back() == ':') {
        labels_[strip(line, ":")] = static_cast<int>(kernel_->code.size());
      } else {
        if (line[0] == '{') line = line.substr(1, line.rfind('}') - 1);  // inline assembly has its own names
        for (const auto part : split(line, ';')) statement(part);
      }
    }
  }

  void statement(std::string_view line) {
    if (begins(line, ".reg")) {
      registers(line);
    } else if (begins(line, ".loc")) {
      location(line);
    } else if (begins(line, ".shared")) {
      variable(line);
    } else if (begins(line, ".pragma")) {
    } else if (line[0] == '.') {
      throw Unknown("PTX: directive '" + std::string(line) + "'");
    } else {
      instruction(line);
    }
  }

  // .reg .b32 %r<12>; or .reg .b32 a, b;
  void registers(std::string_view line) {
    const size_t type_at = line.find('.', 4);
    const size_t names_at = line.find_first_of(" \t", type_at);
    const Type type = type_of(line.substr(type_at + 1, names_at - type_at - 1));
    for (const auto name : split(line.substr(names_at), ','))
      classes_[std::string(name.substr(0, name.find('<')))] = type;
  }

  // .loc file line column[, function_name label, inlined_at file line column]. Code from the toolkit's headers is
  // attributed to its caller.
  void location(std::string_view line) {
    const Words parts = split(line, ',');
    const auto take = [&](std::string_view text) {
      const Words words = split(text, ' ');
      file_ = static_cast<int>(number(words[0]));
      if (const int at = static_cast<int>(number(words[1])); at > 0) line_ = at;
    };
    take(strip(parts[0].substr(4)));
    if (parts.size() > 2 && kernel_->files[file_].find("/include/") != std::string::npos) {
      take(strip(strip(parts[2]).substr(10)));
    }
  }

  bool is_register(std::string_view s) const { return s[0] == '%' || classes_.count(std::string(s)) > 0; }

  // %r12 is of the class %r; names in inline assembly are their own classes.
  Operand register_named(std::string_view name) {
    const auto [at, is_new] = known_.emplace(std::string(name), Operand{});
    Operand& o = at->second;
    if (!is_new) return o;
    auto declared = classes_.find(std::string(name));
    if (declared == classes_.end()) {
      declared = classes_.find(std::string(name.substr(0, name.find_last_not_of("0123456789") + 1)));
    }
    const auto special = std::find(std::begin(kSpecials), std::end(kSpecials), name);
    if (declared == classes_.end() && special == std::end(kSpecials)) {
      throw Unknown("PTX: register " + std::string(name));
    }
    const Type type = declared == classes_.end() ? Type::kU32 : declared->second;
    o.index = static_cast<int>(kernel_->registers++);
    o.row = kernel_->register_bytes;
    o.bytes = static_cast<uint8_t>(size_of(type));
    if (special != std::end(kSpecials)) kernel_->specials.emplace_back(special - std::begin(kSpecials), o);
    kernel_->register_bytes += type == Type::kPred ? 4 : static_cast<uint32_t>(o.bytes * kLanes);
    return o;
  }

  // The start of a shared array. Arrays are 64 bytes apart, so that an overrun does not hit another array.
  uint32_t place_of(const std::string& name) {
    const Variable& v = variables_.at(name);
    if (v.is_dynamic) return kDynamicShared;
    if (const auto placed = placed_.find(name); placed != placed_.end()) return placed->second;
    const uint32_t begin = (kernel_->static_shared + 127) / 64 * 64;
    const std::string title = demangled(name);
    kernel_->arrays.push_back({"shared " + title.substr(title.rfind(':') + 1), begin, v.bytes});
    kernel_->static_shared = begin + v.bytes;
    placed_[name] = begin;
    return begin;
  }

  Operand immediate(int64_t value) {
    Operand o;
    o.constant = kernel_->constants.emplace_back(std::make_unique<Constant>(value)).get();
    o.bytes = 8;
    o.offset = value;
    return o;
  }

  // An operand of an instruction; a predicate's row has a bit per lane.
  Operand operand(std::string_view s, bool of_predicates) {
    if (is_register(s)) return register_named(s);
    const auto name = std::string(s);
    if (begins(s, "0f") || begins(s, "0d"))
      return immediate(static_cast<int64_t>(std::strtoull(name.c_str() + 2, nullptr, 16)));
    if (const auto at = parameters_.find(name); at != parameters_.end()) return immediate(at->second);
    if (variables_.count(name)) return immediate(place_of(name));
    const int64_t value = number(s);
    return immediate(of_predicates && value != 0 ? -1 : value);
  }

  // [%rd1+4], [name+4], [16]
  Operand address(std::string_view s) {
    const size_t plus = s.find('+');
    const auto base = strip(s.substr(0, plus));
    const int64_t offset = plus == s.npos ? 0 : number(strip(s.substr(plus + 1)));
    Operand o;
    if (is_register(base)) {
      o = register_named(base);
      o.offset = offset;
    } else if (const auto at = parameters_.find(std::string(base)); at != parameters_.end()) {
      o.offset = at->second + offset;
    } else if (variables_.count(std::string(base))) {
      o.offset = place_of(std::string(base)) + offset;
    } else {
      o.offset = number(base) + offset;
    }
    return o;
  }

  void instruction(std::string_view s) {
    Instruction i;
    i.file = file_;
    i.line = line_;
    if (s[0] == '@') {
      const size_t space = s.find_first_of(" \t");
      i.guard_negated = s[1] == '!';
      i.guard = register_named(s.substr(i.guard_negated ? 2 : 1, space - (i.guard_negated ? 2 : 1)));
      i.reads.push_back(i.guard.index);
      s = strip(s.substr(space));
    }
    const size_t space = std::min(s.find_first_of(" \t"), s.size());
    const Words words = split(s.substr(0, space), '.');
    std::vector<Type> types;
    for (const auto word : words) {
      if (const Type type = type_of(word); type != Type::kNone) types.push_back(type);
      if (word == "ftz" || word == "approx") throw Unknown("PTX: not exact: " + std::string(s));
    }
    if (!types.empty()) {
      i.type = types[0];
      i.from = types.size() > 1 ? types[1] : types[0];
    }
    if (words[0] == "bra") {
      i.flow = Flow::kBranch;
      jumps_.emplace_back(static_cast<int>(kernel_->code.size()), strip(s.substr(space)));
      kernel_->code.push_back(std::move(i));
      return;
    }
    operands(strip(s.substr(space)), words, i);
    if (words[0] == "ret" || words[0] == "exit") {
      i.flow = Flow::kExit;
    } else if (begins(s, "bar.sync") || begins(s, "barrier.sync")) {
      i.flow = Flow::kBarrier;
      if (i.o.size() != 1 || i.o[0].offset != 0) throw Unknown("PTX: a barrier of some warps: " + std::string(s));
    } else {
      for (const auto find : {find_arithmetic, find_conversion, find_collective, find_memory}) {
        if (i.execute == nullptr) i.execute = find(words, i);
      }
      if (i.execute == nullptr) throw Unknown("PTX: the machine does not know '" + std::string(s) + "'");
    }
    kernel_->code.push_back(std::move(i));
  }

  // The registers of a vector become separate operands. All instructions but stores and the like write their first
  // operand.
  void operands(std::string_view text, const Words& words, Instruction& i) {
    const bool writes = words[0] != "st" && words[0] != "cp" && words[0] != "bar" && words[0] != "barrier";
    const Words parts = split(text, ',');
    for (size_t n = 0; n < parts.size(); ++n) {
      const bool result = writes && n == 0;
      const auto add = [&](std::string_view name) {
        if (name == "_") return i.o.push_back({});
        i.o.push_back(operand(name, i.type == Type::kPred));
        if (i.o.back().index >= 0) (result ? i.writes : i.reads).push_back(i.o.back().index);
      };
      const std::string_view part = parts[n];
      if (part[0] == '[') {
        i.o.push_back(address(part.substr(1, part.size() - 2)));
        if (i.o.back().index >= 0) i.reads.push_back(i.o.back().index);
      } else if (part[0] == '{') {
        const Words names = split(part.substr(1, part.size() - 2), ',');
        if (n == 0 || words[0] == "mov" || words[0] == "st") i.parts = static_cast<int>(names.size());
        for (const auto name : names) add(name);
      } else if (const size_t bar = part.find('|'); bar != part.npos) {  // shfl's second result
        add(strip(part.substr(0, bar)));
        add(strip(part.substr(bar + 1)));
        i.parts = 2;
      } else {
        add(part);
      }
    }
  }

  std::string_view text_;
  std::unique_ptr<Kernel> kernel_;
  std::map<std::string, Type> classes_;  // of registers, by the name before the number
  std::map<std::string, Operand> known_;
  std::map<std::string, uint32_t> parameters_;
  std::map<std::string, Variable> variables_;
  std::map<std::string, uint32_t> placed_;  // arrays that the kernel uses
  std::map<std::string_view, int> labels_;
  std::vector<std::pair<int, std::string_view>> jumps_;
  int file_ = 0, line_ = 0;
};

constexpr std::string_view kEntry = ".entry ";

}  // namespace

Module::Module(std::string text) : text_(std::move(text)) {
  for (size_t at = text_.find(kEntry); at != text_.npos; at = text_.find(kEntry, at + 1)) {
    const size_t begin = at + kEntry.size();
    names_.push_back(text_.substr(begin, text_.find_first_of("(\n ", begin) - begin));
  }
}

std::unique_ptr<Kernel> Module::parse(const std::string& name) const {
  size_t at = text_.find(std::string(kEntry) + name);
  while (!std::strchr("(\n ", text_[at + kEntry.size() + name.size()]))
    at = text_.find(std::string(kEntry) + name, at + 1);
  return Parser(text_, name).parse(at);
}

}  // namespace ptx
