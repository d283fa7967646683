// What both extension modules share: addresses from Python, checked before they are followed.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace lip_fast {

using Address = std::uintptr_t;

/// The address of ``count`` values as a pointer; null and misaligned addresses are refused.
template <class T>
T* pointer(const char* name, Address address, std::int64_t count) {
  if (count < 0) {
    throw std::invalid_argument(std::string("expected ") + name + " of at least 0 values, got " +
                                std::to_string(count));
  }
  if (address == 0 && count > 0) {
    throw std::invalid_argument(std::string("expected ") + name + " of " + std::to_string(count) +
                                " values, got a null address");
  }
  if (address % alignof(T) != 0) {
    throw std::invalid_argument(std::string("expected ") + name + " aligned to " +
                                std::to_string(alignof(T)) + " bytes, got address " + std::to_string(address));
  }
  return reinterpret_cast<T*>(address);
}

}  // namespace lip_fast
