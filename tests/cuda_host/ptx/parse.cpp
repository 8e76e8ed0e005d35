// Parses PTX text to instructions. Unknown text is an error; only debug directives are skipped.
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "machine.h"

namespace ptx {

namespace {

using Words = std::vector<std::string_view>;

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

int64_t number(std::string_view s) {
  const std::string text(s);
  char* end = nullptr;
  const auto value = static_cast<int64_t>(std::strtoull(text.c_str(), &end, 0));
  if (*end != 0 && *end != 'U') throw Fault("PTX: '" + text + "' is no number");
  return value;
}

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                    std::free);
  return status == 0 ? text.get() : name;
}

// Kind and bytes of "s32", "bf16" and the like; none if the word names no type.
Type type_of(std::string_view word) {
  if (word == "pred") return {'p', 1};
  const size_t digits = std::min(word.find_first_of("0123456789"), word.size());
  const std::string_view kind = word.substr(0, digits), bits = word.substr(digits);
  for (const int bytes : {1, 2, 4, 8}) {
    if (bits != std::to_string(8 * bytes)) continue;
    if (kind == "bf") return {'g', bytes};
    if (kind.size() == 1 && kind.find_first_of("subf") == 0) return {kind[0], bytes};
  }
  return {};
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), kernel_(std::make_unique<Kernel>()) {
    kernel_->title = demangled(name);
    kernel_->turing = text.find(".target sm_75") != text.npos;
  }

  std::unique_ptr<Kernel> parse(size_t begin) {
    module_variables(text_);
    const size_t body = text_.find('{', begin);
    header(text_.substr(begin, body - begin));
    const size_t end = text_.find("\n}", body);
    lines(text_.substr(body + 1, end - body - 1));
    for (const auto& [at, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("PTX: no label " + std::string(label));
      kernel_->code[at].target = found->second;
    }
    return std::move(kernel_);
  }

 private:
  // Reads shared arrays and names of files.
  void module_variables(std::string_view text) {
    for (const char* what : {"\n.extern .shared", "\n.shared", "\n.file"}) {
      for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) {
        const auto line = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
        strip(line).starts_with(".file") ? file(strip(line)) : variable(line);
      }
    }
  }

  // .file 2 "product_tile.cuh"
  void file(std::string_view line) {
    const size_t name = line.find('"');
    kernel_->files[static_cast<int>(number(strip(line.substr(5, name - 5))))] =
        line.substr(name + 1, line.find('"', name + 1) - name - 1);
  }

  // .shared .align 4 .b8 tile[256], .param .u64 name. A parameter begins at a multiple of its alignment; an extern
  // array is the dynamic memory.
  static Variable declaration(std::string_view line, uint32_t end = 0) {
    const Words words = split(strip(line), ' ');
    const std::string_view name = words.back();
    const size_t bracket = name.find('[');
    const auto elements = bracket == name.npos ? "1" : strip(name.substr(bracket), "[]");
    uint32_t size = 0, align = 1;
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == ".align") align = static_cast<uint32_t>(number(words[i + 1]));
      if (const Type type = type_of(words[i].substr(1)); type.bytes > 0) size = static_cast<uint32_t>(type.bytes);
    }
    align = std::max(align, size);
    const uint32_t begin = elements.empty() ? kDynamicShared : (end + align - 1) / align * align;
    return {std::string(name.substr(0, bracket)), begin,
            elements.empty() ? 0 : size * static_cast<uint32_t>(number(elements))};
  }

  void variable(std::string_view line) {
    const Variable v = declaration(line);
    variables_[v.name] = v;
  }

  void header(std::string_view text) {
    const size_t open = text.find('('), close = text.rfind(')');
    const auto listed = open == text.npos ? std::string_view() : text.substr(open + 1, close - open - 1);
    for (const auto line : split(listed, ',')) {
      const Variable v = declaration(line, kernel_->parameters_end);
      places_[v.name] = v.begin;
      kernel_->parameters.push_back(v);
      kernel_->parameters_end = v.begin + v.bytes;
    }
    if (const size_t at = text.find(".maxntid"); at != text.npos) {
      kernel_->most_threads = 1;
      for (const auto size : split(text.substr(at + 8, text.find('\n', at) - at - 8), ',')) {
        kernel_->most_threads *= static_cast<uint32_t>(number(size));
      }
    }
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
    if (line.starts_with(".reg")) {
      registers(line);
    } else if (line.starts_with(".loc")) {
      location(line);
    } else if (line.starts_with(".shared")) {
      variable(line);
    } else if (line.starts_with(".pragma")) {
    } else if (line[0] == '.') {
      throw Fault("PTX: directive '" + std::string(line) + "'");
    } else {
      instruction(line);
    }
  }

  // .reg .b32 %r<12>; or .reg .b32 a, b;
  void registers(std::string_view line) {
    for (const auto name : split(line.substr(line.find_first_of(" \t", line.find('.', 4))), ',')) {
      classes_.emplace(name.substr(0, name.find('<')));
    }
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

  bool is_register(std::string_view s) const { return s[0] == '%' || classes_.count(s) > 0; }

  // %r12 is of the class %r; names in inline assembly are their own classes.
  Operand register_named(std::string_view name) {
    const auto [at, is_new] = rows_.try_emplace(std::string(name), kernel_->rows);
    if (is_new) {
      ++kernel_->rows;
      const auto special = std::find(std::begin(kSpecials), std::end(kSpecials), name);
      if (special != std::end(kSpecials)) {
        kernel_->specials.emplace_back(special - kSpecials, at->second);
      } else if (!classes_.count(name) && !classes_.count(name.substr(0, name.find_last_not_of("0123456789") + 1))) {
        throw Fault("PTX: register " + std::string(name));
      }
    }
    return {at->second};
  }

  // The place of a parameter, or of a shared array; none if it is neither. Arrays are 64 bytes apart, so that an
  // overrun does not hit another array.
  std::optional<uint32_t> place_of(const std::string& name) {
    if (const auto placed = places_.find(name); placed != places_.end()) return placed->second;
    const auto declared = variables_.find(name);
    if (declared == variables_.end()) return std::nullopt;
    Variable v = declared->second;
    if (v.begin == kDynamicShared) return v.begin;
    v.begin = (kernel_->static_shared + 127) / 64 * 64;
    v.name = demangled(name);
    v.name = "shared " + v.name.substr(v.name.rfind(':') + 1);
    kernel_->arrays.push_back(v);
    kernel_->static_shared = v.begin + v.bytes;
    return places_[name] = v.begin;
  }

  Operand operand(std::string_view s) {
    if (is_register(s)) return register_named(s);
    const std::string name(s);
    const bool real = s.starts_with("0f") || s.starts_with("0d");
    const auto place = place_of(name);
    const int64_t value = real    ? static_cast<int64_t>(std::strtoull(name.c_str() + 2, nullptr, 16))
                          : place ? *place
                                  : number(s);
    const auto [at, is_new] = kernel_->immediates.try_emplace(value, kernel_->rows);
    kernel_->rows += is_new;
    return {at->second, value};
  }

  // [%rd1+4], [name+4], [16]
  Operand address(std::string_view s) {
    const size_t plus = s.find('+');
    const auto base = strip(s.substr(0, plus));
    Operand o = is_register(base) ? register_named(base) : Operand{};
    if (o.row < 0) {
      const auto place = place_of(std::string(base));
      o.offset = place ? *place : number(base);
    }
    o.offset += plus == s.npos ? 0 : number(strip(s.substr(plus + 1)));
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
      i.reads.push_back(i.guard.row);
      s = strip(s.substr(space));
    }
    const size_t space = std::min(s.find_first_of(" \t"), s.size());
    const std::string_view full = s.substr(0, space);
    std::string name;  // without types
    std::vector<Type> types;
    for (const auto word : split(full, '.')) {
      if (const Type type = type_of(word); type.bytes > 0) {
        types.push_back(type);
      } else if (word != "rn") {
        name += (name.empty() ? "" : ".") + std::string(word);
      }
    }
    if (!types.empty()) {
      i.type = types[0];
      i.from = types.back();
    }
    if (name == "bra" || name == "bra.uni") {
      i.flow = Flow::kBranch;
      jumps_.emplace_back(static_cast<int>(kernel_->code.size()), strip(s.substr(space)));
      kernel_->code.push_back(std::move(i));
      return;
    }
    operands(strip(s.substr(space)), name.substr(0, name.find('.')), i);
    if (name == "ret") {
      i.flow = Flow::kExit;
    } else if (name == "bar.sync") {
      i.flow = Flow::kBarrier;
      if (i.o.size() != 1 || i.o[0].offset != 0) throw Fault("PTX: a barrier of some warps: " + std::string(s));
    } else {
      i.execute = find_arithmetic(full, name, i);
      if (i.execute == nullptr) i.execute = find_collective(full, i);
      if (i.execute == nullptr) i.execute = find_memory(name, i);
      if (i.execute == nullptr) throw Fault("PTX: the machine does not know '" + std::string(s) + "'");
    }
    kernel_->code.push_back(std::move(i));
  }

  // The registers of a vector become separate operands. All instructions but stores and the like write their first
  // operand.
  void operands(std::string_view text, std::string_view op, Instruction& i) {
    const bool writes = op != "st" && op != "cp" && op != "bar";
    const Words parts = split(text, ',');
    for (size_t n = 0; n < parts.size(); ++n) {
      const auto add = [&](Operand o, std::vector<int>& to) {
        i.o.push_back(o);
        if (o.row >= 0) to.push_back(o.row);
      };
      const auto add_all = [&](std::string_view list, char by) {
        const Words names = split(list, by);
        for (const auto name : names)
          add(name == "_" ? Operand{} : operand(name), writes && n == 0 ? i.writes : i.reads);
        return static_cast<int>(names.size());
      };
      const std::string_view part = parts[n], inside = part.substr(1, part.size() - 2);
      if (part[0] == '[') {
        add(address(inside), i.reads);
      } else if (part[0] == '{') {
        const int elements = add_all(inside, ',');
        if (n == 0 || op == "mov" || op == "st") i.parts = elements;
        i.splits = i.splits || n == 0;
      } else if (const int results = add_all(part, '|'); results > 1) {  // shfl's second
        i.parts = results;
      }
    }
  }

  std::string_view text_;
  std::unique_ptr<Kernel> kernel_;
  std::set<std::string, std::less<>> classes_;  // of registers, by the name before the number
  std::map<std::string, int> rows_;             // of registers
  std::map<std::string, uint32_t> places_;      // of parameters, and of the arrays that the kernel uses
  std::map<std::string, Variable> variables_;
  std::map<std::string_view, int> labels_;
  std::vector<std::pair<int, std::string_view>> jumps_;
  int file_ = 0, line_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> parse(const std::string& module, const std::string& name) {
  size_t at = 0, end = 0;
  do {
    at = module.find(".entry " + name, end);
    end = at + 7 + name.size();
  } while (!std::strchr("(\n ", module[end]));
  return Parser(module, name).parse(at);
}

}  // namespace ptx
