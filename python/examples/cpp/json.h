// Just enough JSON to read what a frozen network's file says about its layers.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  enum Kind { kNull, kBool, kNumber, kText, kList, kObject } kind = kNull;
  double number = 0;  // and of a bool, 0 or 1
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json& operator[](const std::string& name) const {
    const auto found = members.find(name);
    if (found == members.end()) throw std::runtime_error("the file does not say " + name);
    return found->second;
  }
  bool has(const std::string& name) const { return members.count(name) > 0; }

  static Json parse(const std::string& text) {
    Reader reader{text.c_str(), text.c_str() + text.size()};
    Json value = reader.value(0);
    reader.skip_space();
    reader.expect(reader.at == reader.end);
    return value;
  }

 private:
  struct Reader {
    const char* at;
    const char* end;  // where the string's own terminating 0 stands

    void expect(bool truth) const {
      if (!truth) throw std::runtime_error("the header is not JSON");
    }
    void skip_space() {
      while (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r') ++at;
    }
    char next() {
      expect(at < end);
      return *at++;
    }
    bool take(char c) {
      skip_space();
      if (*at != c || at == end) return false;
      ++at;
      return true;
    }
    bool take_word(const char* word) {
      const char* now = at;
      while (*word != 0 && *now == *word) ++now, ++word;
      if (*word != 0) return false;
      at = now;
      return true;
    }

    Json value(int depth) {
      expect(depth < 32);
      Json result;
      skip_space();
      if (take('{')) {
        result.kind = kObject;
        if (!take('}')) {
          do {
            skip_space();
            const std::string name = string();
            expect(take(':'));
            result.members[name] = value(depth + 1);
          } while (take(','));
          expect(take('}'));
        }
      } else if (take('[')) {
        result.kind = kList;
        if (!take(']')) {
          do result.items.push_back(value(depth + 1));
          while (take(','));
          expect(take(']'));
        }
      } else if (*at == '"') {
        result.kind = kText;
        result.text = string();
      } else if (take_word("true")) {
        result.kind = kBool;
        result.number = 1;
      } else if (take_word("false")) {
        result.kind = kBool;
      } else if (!take_word("null")) {
        char* after = nullptr;
        result.kind = kNumber;
        result.number = std::strtod(at, &after);
        expect(after != at);
        at = after;
      }
      return result;
    }

    std::string string() {
      expect(next() == '"');
      std::string result;
      for (char c = next(); c != '"'; c = next()) {
        if (c == '\\') {
          c = next();
          expect(c == '"' || c == '\\' || c == '/');  // no name in the file needs another
        }
        result += c;
      }
      return result;
    }
  };
};
