/* The crate that compiles zlib hides all of its names. These are the ones that scripts ask for; `build.rs` has put
   `bundled_` before the hidden ones, so that the two do not meet. */
#include <zlib.h>

const char *bundled_zlibVersion(void);
uLong bundled_crc32(uLong crc, const Bytef *bytes, uInt length);
uLong bundled_adler32(uLong adler, const Bytef *bytes, uInt length);
uLong bundled_compressBound(uLong length);
int bundled_compress2(Bytef *to, uLongf *size, const Bytef *from, uLong length, int level);
int bundled_uncompress(Bytef *to, uLongf *size, const Bytef *from, uLong length);

const char *zlibVersion(void) { return bundled_zlibVersion(); }
uLong crc32(uLong crc, const Bytef *bytes, uInt length) { return bundled_crc32(crc, bytes, length); }
uLong adler32(uLong adler, const Bytef *bytes, uInt length) { return bundled_adler32(adler, bytes, length); }
uLong compressBound(uLong length) { return bundled_compressBound(length); }
int compress2(Bytef *to, uLongf *size, const Bytef *from, uLong length, int level) {
    return bundled_compress2(to, size, from, length, level);
}
int uncompress(Bytef *to, uLongf *size, const Bytef *from, uLong length) {
    return bundled_uncompress(to, size, from, length);
}
