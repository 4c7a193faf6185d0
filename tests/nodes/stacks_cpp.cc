// NIF library `stacks_cpp`: takes memory at the end of stacks of C++ that are known frame by frame.
//
//   leak(virtual, ...)    leak -> leak_one -> shapes::add -> shapes::Drawing::add -> (virtual) shapes::Circle::store
//                         -> shapes::Store<shapes::Row>::take -> operator new[] -> malloc
//   leak(vector, ...)     leak -> leak_one -> shapes::fill -> shapes::Pile::push -> std::vector grows
//                         -> operator new -> malloc
//   leak(exception, ...)  leak -> leak_one -> shapes::survive -> shapes::Circle::store -> ..., after an exception
//   leak(handler, ...)    leak -> leak_one -> shapes::handle -> shapes::Circle::store -> ..., while it is handled
//
// `leak(Way, Blocks, Bytes)` keeps `Blocks` blocks of `Bytes` bytes, an even number above 2; `lost/0` is the sum of all.
#include "any_release.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

namespace {

std::atomic<unsigned long long> lost_bytes{0};
void *volatile last_block;

} // namespace

namespace shapes {

struct Row {
    char content[2];
};

template <typename Item> struct Store {
    FRAME static bool take(std::size_t bytes) {
        Item *items = new (std::nothrow) Item[bytes / sizeof(Item)];
        if (items == nullptr)
            return false;
        std::memset(items, 0x5a, bytes);
        last_block = items;
        lost_bytes += bytes;
        return true;
    }
};

class Shape {
  public:
    virtual ~Shape() = default;
    virtual bool store(std::size_t bytes) = 0;
};

class Circle final : public Shape {
  public:
    FRAME bool store(std::size_t bytes) override {
        bool taken = Store<Row>::take(bytes);
        AFTER_CALL();
        return taken;
    }
};

class Square final : public Shape {
  public:
    FRAME bool store(std::size_t) override { return false; }
};

class Drawing {
  public:
    FRAME bool add(Shape &shape, std::size_t bytes) {
        bool taken = shape.store(bytes);
        AFTER_CALL();
        return taken;
    }
};

// Half of the bytes first; one more item makes it grow to all of them. Its memory is never given back.
class Pile {
  public:
    explicit Pile(std::size_t items) : items(*new (room) std::vector<char>(items)) {}
    FRAME bool push(char item) {
        items.push_back(item);
        AFTER_CALL();
        return items.back() == item;
    }
    std::size_t capacity() const { return items.capacity(); }

  private:
    alignas(std::vector<char>) char room[sizeof(std::vector<char>)];
    std::vector<char> &items;
};

FRAME bool add(Shape &shape, std::size_t bytes) {
    bool taken = Drawing().add(shape, bytes);
    AFTER_CALL();
    return taken;
}

FRAME bool fill(std::size_t bytes) {
    Pile pile(bytes / 2);
    bool pushed = pile.push(1);
    lost_bytes += pile.capacity();
    return pushed;
}

FRAME void fail(std::size_t bytes) {
    if (bytes > 0)
        throw std::runtime_error("meant to happen");
    AFTER_CALL();
}

FRAME bool survive(std::size_t bytes) {
    bool caught = false;
    try {
        fail(bytes);
    } catch (const std::runtime_error &) {
        caught = true;
    }
    bool taken = Circle().store(bytes);
    AFTER_CALL();
    return caught && taken;
}

FRAME bool handle(std::size_t bytes) {
    bool taken = false;
    try {
        fail(bytes);
    } catch (const std::runtime_error &) {
        taken = Circle().store(bytes);
        AFTER_CALL();
    }
    return taken;
}

} // namespace shapes

static FRAME bool leak_one(const char *way, std::size_t bytes) {
    shapes::Circle circle;
    shapes::Square square;
    shapes::Shape &shape = bytes == 2 ? static_cast<shapes::Shape &>(square) : circle;
    if (std::strcmp(way, "virtual") == 0)
        return shapes::add(shape, bytes);
    if (std::strcmp(way, "vector") == 0)
        return shapes::fill(bytes);
    if (std::strcmp(way, "exception") == 0)
        return shapes::survive(bytes);
    return std::strcmp(way, "handler") == 0 && shapes::handle(bytes);
}

static FRAME ERL_NIF_TERM leak(ErlNifEnv *env, int, const ERL_NIF_TERM argv[]) {
    char way[16];
    unsigned long blocks, bytes;
    if (!enif_get_atom(env, argv[0], way, sizeof way, ERL_NIF_LATIN1) || !enif_get_ulong(env, argv[1], &blocks) ||
        !enif_get_ulong(env, argv[2], &bytes) || bytes == 0 || bytes % 2 != 0)
        return enif_make_badarg(env);
    bool taken = true;
    while (blocks-- > 0)
        taken &= leak_one(way, bytes);
    return enif_make_atom(env, taken ? "ok" : "false");
}

static ERL_NIF_TERM lost(ErlNifEnv *env, int, const ERL_NIF_TERM[]) {
    return enif_make_uint64(env, lost_bytes.load());
}

static ErlNifFunc functions[] = {
    {"leak", 3, leak, 0},
    {"lost", 0, lost, 0},
};

ERL_NIF_INIT(stacks_cpp, functions, nullptr, nullptr, nullptr, nullptr)
