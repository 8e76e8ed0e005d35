// Pieces of text, as the parser needs them.
#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "machine.h"

namespace ptx {

using Words = std::vector<std::string_view>;

inline std::string_view strip(std::string_view s, std::string_view of = " \t\r\n;") {
  const auto begin = s.find_first_not_of(of);
  return begin == s.npos ? std::string_view() : s.substr(begin, s.find_last_not_of(of) - begin + 1);
}

// The parts of `s` between `by`, where it is not inside of braces or brackets.
inline Words split(std::string_view s, char by) {
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

inline bool begins(std::string_view s, std::string_view with) { return s.substr(0, with.size()) == with; }

inline int64_t number(std::string_view s) {
  const std::string text(s);
  char* end = nullptr;
  const int64_t value =
      text[0] == '-' ? std::strtoll(text.c_str(), &end, 0) : static_cast<int64_t>(std::strtoull(text.c_str(), &end, 0));
  if (*end != 0 && *end != 'U') throw Unknown("PTX: '" + text + "' is no number");
  return value;
}

inline std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                    std::free);
  return status == 0 ? text.get() : name;
}

}  // namespace ptx
