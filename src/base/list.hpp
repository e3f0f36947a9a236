// Intrusive doubly linked circular list. The list head owns nothing; whoever holds the lock of the
// structure that embeds the nodes may change it. A node is on at most one list; unlinked means next == this.
#pragma once
#include <cstddef>

namespace icepath {

struct list_node {
  list_node* next = this;
  list_node* prev = this;
  list_node() = default;
  list_node(const list_node&) = delete;
  list_node& operator=(const list_node&) = delete;
  bool linked() const { return next != this; }
  void unlink() { next->prev = prev; prev->next = next; next = prev = this; }
  void insert_before(list_node& at) { prev = at.prev; next = &at; at.prev->next = this; at.prev = this; }
};

struct list_head : list_node {
  bool empty() const { return next == this; }
  void push_back(list_node& n) { n.insert_before(*this); }
  void push_front(list_node& n) { n.insert_before(*next); }
};

// The object a node is embedded in: list_entry<T, &T::member>(node).
template <class T, list_node T::*M>
T* list_entry(list_node* n) {
  alignas(T) static char probe[sizeof(T)];
  T* const t = reinterpret_cast<T*>(probe);
  const std::ptrdiff_t off = reinterpret_cast<char*>(&(t->*M)) - reinterpret_cast<char*>(t);
  return reinterpret_cast<T*>(reinterpret_cast<char*>(n) - off);
}

}  // namespace icepath
