// NIF library `leaky_cpp`: leaks known numbers of bytes through C++'s operator new.
//
//   leak_new -> Catalogue::add_entries -> Catalogue::add_entry -> operator new[] -> malloc
//
// `leak_new(Bytes, Blocks)` returns the bytes leaked so far; `counters/0` returns them as `[{new, Bytes}]`.
#include <erl_nif.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>

#define FRAME __attribute__((noinline))

namespace {

std::atomic<unsigned long long> leaked{0};
char *volatile last_block;

class Catalogue {
  public:
    FRAME bool add_entries(std::size_t bytes, unsigned long count) {
        bool added = true;
        while (count-- > 0)
            added &= add_entry(bytes);
        return added;
    }

  private:
    FRAME bool add_entry(std::size_t bytes) {
        char *block = new (std::nothrow) char[bytes];
        if (block == nullptr)
            return false;
        std::memset(block, 0x5a, bytes);
        last_block = block;
        leaked += bytes;
        return true;
    }
};

ERL_NIF_TERM leak_new(ErlNifEnv *env, int, const ERL_NIF_TERM argv[]) {
    unsigned long bytes, count;
    if (!enif_get_ulong(env, argv[0], &bytes) || !enif_get_ulong(env, argv[1], &count) || bytes == 0)
        return enif_make_badarg(env);
    if (!Catalogue().add_entries(bytes, count))
        return enif_raise_exception(env, enif_make_atom(env, "enomem"));
    return enif_make_uint64(env, leaked.load());
}

ERL_NIF_TERM counters(ErlNifEnv *env, int, const ERL_NIF_TERM[]) {
    ERL_NIF_TERM entry = enif_make_tuple2(env, enif_make_atom(env, "new"), enif_make_uint64(env, leaked.load()));
    return enif_make_list1(env, entry);
}

ErlNifFunc functions[] = {
    {"leak_new", 2, leak_new, 0},
    {"counters", 0, counters, 0},
};

} // namespace

ERL_NIF_INIT(leaky_cpp, functions, nullptr, nullptr, nullptr, nullptr)
