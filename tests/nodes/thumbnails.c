/* NIF library `thumbnails`: the demo's leak. It makes a small picture out of a large one, and forgets a block each time.
 *
 *   render -> decode_image -> parse_metadata -> copy_colour_profile -> malloc     never freed: the leak
 *                          -> decode_rows    -> malloc/free                       balanced
 *          -> scale_image  -> scale_rows     -> malloc/free                       balanced
 */
#include <erl_nif.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define FRAME __attribute__((noinline, noclone))

enum { COLOUR_PROFILE_BYTES = 2048, ROWS = 8, ROW_BYTES = 3072, THUMBNAIL_BYTES = 1500 };

struct image {
    const char *colour_profile;
    unsigned checksum;
};

static atomic_ullong leaked_bytes;

/* The bug: the copy belongs to the image, and nothing frees it with the image. */
static FRAME const char *copy_colour_profile(unsigned seed) {
    char *copy = malloc(COLOUR_PROFILE_BYTES);
    if (copy == NULL)
        return NULL;
    memset(copy, (int)(seed & 0x7f), COLOUR_PROFILE_BYTES);
    atomic_fetch_add(&leaked_bytes, COLOUR_PROFILE_BYTES);
    return copy;
}

static FRAME int parse_metadata(struct image *image, unsigned seed) {
    image->colour_profile = copy_colour_profile(seed);
    return image->colour_profile != NULL;
}

static FRAME int decode_rows(struct image *image, unsigned seed) {
    for (int row = 0; row < ROWS; row++) {
        unsigned char *pixels = malloc(ROW_BYTES);
        if (pixels == NULL)
            return 0;
        memset(pixels, (int)(seed + (unsigned)row), ROW_BYTES);
        image->checksum += pixels[seed % ROW_BYTES];
        free(pixels);
    }
    return 1;
}

static FRAME int decode_image(struct image *image, unsigned seed) {
    int decoded = parse_metadata(image, seed) && decode_rows(image, seed);
    image->checksum += decoded ? (unsigned)image->colour_profile[0] : 0;
    return decoded;
}

static FRAME int scale_rows(const struct image *image, unsigned char *thumbnail) {
    unsigned char *window = calloc(ROWS, ROW_BYTES / ROWS);
    if (window == NULL)
        return 0;
    window[image->checksum % ROW_BYTES] = 1;
    for (int i = 0; i < THUMBNAIL_BYTES; i++)
        thumbnail[i] = (unsigned char)(window[i] + image->checksum);
    free(window);
    return 1;
}

static FRAME int scale_image(const struct image *image, unsigned char *thumbnail) {
    int scaled = scale_rows(image, thumbnail);
    thumbnail[0] ^= (unsigned char)scaled;
    return scaled;
}

static ERL_NIF_TERM render(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc;
    unsigned seed;
    if (!enif_get_uint(env, argv[0], &seed))
        return enif_make_badarg(env);
    struct image image = {NULL, 0};
    ERL_NIF_TERM term;
    unsigned char *thumbnail = enif_make_new_binary(env, THUMBNAIL_BYTES, &term);
    if (thumbnail == NULL || !decode_image(&image, seed) || !scale_image(&image, thumbnail))
        return enif_raise_exception(env, enif_make_atom(env, "enomem"));
    return term;
}

static ERL_NIF_TERM leaked(ErlNifEnv *env, int argc, const ERL_NIF_TERM argv[]) {
    (void)argc, (void)argv;
    return enif_make_uint64(env, atomic_load(&leaked_bytes));
}

static ErlNifFunc functions[] = {
    {"render", 1, render, 0},
    {"leaked", 0, leaked, 0},
};

ERL_NIF_INIT(thumbnails, functions, NULL, NULL, NULL, NULL)
