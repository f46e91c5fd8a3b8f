//! The text of signatures and types: what is read, what is refused and where, and that what is printed is read again.

use crate::emulator::EMULATED;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use proptest::{prop_assert, prop_assert_eq};
use reentry::dynamic::{
    Abi, Pointee, Scalar, Signature, SignatureError, Struct, Target, Type, TypeError, Types,
};
use std::sync::Arc;

/// A runner that makes the same cases each time. Text is text on every machine: an emulated one has the first of them.
fn runner(cases: u32) -> TestRunner {
    let cases = if EMULATED { cases / 40 } else { cases };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn names() -> impl Strategy<Value = Arc<str>> {
    // None of them is a word of C, or the name of a type.
    "[a-z]{1,3}_[A-Z0-9]{0,4}|_[a-z]{2}[0-9]".prop_map(Arc::from)
}

fn scalars() -> impl Strategy<Value = Type> {
    select(Scalar::ALL).prop_map(Type::Scalar)
}

fn abis() -> impl Strategy<Value = Abi> {
    let all = [Abi::C, Abi::SysV64, Abi::Win64, Abi::StdCall, Abi::FastCall, Abi::ThisCall];
    select(all.into_iter().filter(|abi| abi.is_supported()).collect::<Vec<_>>())
}

fn pointer(constant: bool, target: Target) -> Type {
    Type::Pointer(Arc::new(Pointee { constant, target }))
}

/// A struct of types. Fields of one struct have names of their own, and so has each struct that has one: the parser holds it against other fields.
fn structure(fields: Vec<(Arc<str>, Type)>, tagged: bool) -> Type {
    let fields: Vec<_> = fields
        .into_iter()
        .enumerate()
        .map(|(index, (name, ty))| (format!("{name}_{index}").into(), ty))
        .collect();
    let anonymous =
        Type::Struct(Arc::new(Struct::new(None, fields.clone()).expect("small, and with fields")));
    if !tagged {
        return anonymous;
    }
    // The same fields, the same tag; and other fields another one.
    let hash =
        anonymous.to_string().bytes().fold(0_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    Type::Struct(Arc::new(Struct::new(Some(&format!("s{hash}")), fields).expect("as above")))
}

/// Types of values: what is a parameter, a result or a field.
fn values() -> impl Strategy<Value = Type> {
    let named = (select(&["struct ", "union "]), names(), any::<bool>())
        .prop_map(|(kind, tag, constant)| pointer(constant, Target::Named(format!("{kind}{tag}").into())));
    let leaf = prop_oneof![
        4 => scalars(),
        1 => names().prop_map(Type::Enum),
        1 => any::<bool>().prop_map(|constant| Type::Void.pointer_to(constant)),
        1 => named,
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let field = (inner.clone(), vec(1..4_usize, 0..3)).prop_map(|(ty, counts)| {
            counts.into_iter().fold(ty, |ty, count| Type::Array(Arc::new(ty), count))
        });
        let fields = vec((names(), field), 1..4);
        prop_oneof![
            3 => (inner.clone(), any::<bool>()).prop_map(|(ty, constant)| ty.pointer_to(constant)),
            2 => (fields, any::<bool>()).prop_map(|(fields, tagged)| structure(fields, tagged)),
            2 => signatures_of(inner).prop_map(|signature| pointer(false, Target::Function(signature))),
        ]
    })
}

fn signatures_of(types: impl Strategy<Value = Type> + Clone + 'static) -> impl Strategy<Value = Signature> {
    let result = prop_oneof![1 => Just(Type::Void), 3 => types.clone()];
    (abis(), result, vec(types, 0..5), any::<Option<usize>>()).prop_map(
        |(abi, result, parameters, variadic)| {
            let Some(fixed) = variadic else {
                return Signature::new(abi, result, parameters).expect("small");
            };
            let fixed = fixed % (parameters.len() + 1);
            let named: Vec<_> = parameters[fixed..].iter().map(Type::promoted).collect();
            let open = Signature::variadic(abi, result, parameters[..fixed].to_vec()).expect("small");
            open.with_variadic(&named).expect("promoted")
        },
    )
}

fn signatures() -> impl Strategy<Value = Signature> {
    signatures_of(values().boxed())
}

#[test]
fn a_signature_that_was_printed_is_read_again() {
    let ran = runner(4000).run(&signatures(), |signature| {
        let printed = signature.to_string();
        let again = Signature::parse(&printed).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&signature, &again);
        prop_assert_eq!(printed, again.to_string());
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn a_type_that_was_printed_is_read_again() {
    let arrays = (values(), vec(1..4_usize, 0..3))
        .prop_map(|(ty, counts)| counts.into_iter().fold(ty, |ty, count| Type::Array(Arc::new(ty), count)));
    let ran = runner(4000).run(&arrays, |ty| {
        let printed = ty.to_string();
        let again = Types::new().parse(&printed).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(&ty, &again);
        prop_assert_eq!(printed, again.to_string());
        Ok(())
    });
    ran.unwrap();
}

/// The tokens of a text: words, and signs of one character; `...` is one.
fn tokens(text: &str) -> Vec<&str> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match rest.find(|c| !is_word(c)) {
            _ if rest.starts_with("...") => 3,
            Some(0) => first.len_utf8(),
            Some(length) => length,
            None => rest.len(),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn blanks_between_tokens_do_not_matter() {
    let blanks = vec(select(&["", " ", "  ", "\t", "\n", "\r\n", " \n\t "]), 1..20);
    let ran = runner(1000).run(&(signatures(), blanks), |(signature, blanks)| {
        let printed = signature.to_string();
        let mut spread = String::new();
        let mut was_word = false;
        for (token, blank) in tokens(&printed).into_iter().zip(blanks.iter().cycle()) {
            let is_word = token.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            // Two words need one.
            spread.push_str(if is_word && was_word && blank.is_empty() { " " } else { blank });
            spread.push_str(token);
            was_word = is_word;
        }
        spread.push_str(blanks[0]);
        let again = Signature::parse(&spread).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(signature, again);
        Ok(())
    });
    ran.unwrap();
}

/// The line is one of the text's, and the column one of the line's or the one behind it.
///
/// # Errors
///
/// If they are not.
fn points_into(text: &str, error: &SignatureError) -> Result<(), TestCaseError> {
    let line = text.split('\n').nth(error.line().wrapping_sub(1));
    let Some(line) = line else { return Err(TestCaseError::fail(format!("{error:?} in {text:?}"))) };
    prop_assert!((1..=line.chars().count() + 1).contains(&error.column()), "{:?} in {:?}", error, text);
    prop_assert!(!error.message().is_empty() && error.to_string().starts_with(error.message()));
    Ok(())
}

/// Any text, and text that is nearly C: words and signs in any order.
#[test]
fn arbitrary_text_is_read_or_refused_with_a_place() {
    const WORDS: &[&str] = &[
        "int",
        "unsigned",
        "long",
        "char",
        "void",
        "const",
        "struct",
        "union",
        "enum",
        "typedef",
        "double",
        "x",
        "point",
        "*",
        "*",
        "(",
        ")",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        "...",
        "=",
        "-",
        ":",
        "3",
        "07",
        "0x10",
        "\n",
        "é",
        "\t",
        "_Bool",
        "__attribute__((ms_abi))",
        "__attribute__((packed))",
        "size_t",
        "(*)",
        "(void)",
        "int x;",
        "/",
        "#",
        "99999999999999999999",
    ];
    let nearly = vec(select(WORDS), 0..20).prop_map(|words| words.join(" "));
    let text = prop_oneof![1 => any::<String>(), 1 => "\\PC{0,40}", 3 => nearly];
    let ran = runner(20_000).run(&text, |text| {
        let mut types = Types::new();
        if let Err(error) = types.parse(&text) {
            points_into(&text, &error)?;
        }
        if let Err(error) = types.signature(&text) {
            points_into(&text, &error)?;
        }
        if let Err(error) = types.prototype(&text) {
            points_into(&text, &error)?;
        }
        if let Err(error) = types.declare(&text) {
            points_into(&text, &error)?;
        }
        Ok(())
    });
    ran.unwrap();
}

/// Names that the tables use, as a program would have declared them.
fn declared() -> Types {
    let mut types = Types::new();
    let text = "
        typedef unsigned char Bytef; typedef unsigned int uInt; typedef unsigned long uLong;
        typedef struct z_stream_s { const Bytef *next_in; uInt avail_in; uLong total_in; } z_stream, *z_streamp;
        typedef void *voidpf; typedef voidpf (*alloc_func)(voidpf opaque, uInt items, uInt size);
        typedef long long int sqlite_int64; typedef sqlite_int64 sqlite3_int64;
        typedef int (*compare)(const void *, const void *);
        typedef int row[3]; typedef row square[3];
        struct tm { int tm_sec, tm_min, tm_hour; const char *tm_zone; };
        typedef struct { double x, y; } point;
        typedef struct sqlite3 sqlite3; typedef struct later later;
        struct later { int (*handlers[3])(int), count; };
        enum colour { RED, GREEN = 5, BLUE, };
        typedef enum { LOW = -1, HIGH } level;
    ";
    types.declare(text).unwrap_or_else(|error| panic!("{error}"));
    types
}

const READ: &[(&str, &str)] = &[
    // Structs that are known by name alone, or were.
    ("int sqlite3_open(const char *filename, sqlite3 **ppDb);", "int (const char*, struct sqlite3**)"),
    ("const sqlite3 *f(sqlite3 *const p)", "const struct sqlite3* (struct sqlite3*)"),
    (
        "void f(later x, later *y)",
        "void (struct later { int (*handlers[3])(int); int count; }, struct later*)",
    ),
    ("int f(int (*x[3])(void))", "int (int (**)(void))"),
    ("int f(int (*const x[])(void))", "int (int (*const*)(void))"),
    // The C library.
    ("int printf(const char *restrict format, ...);", "int (const char*, ...)"),
    (
        "int snprintf(char *restrict s, size_t n, const char *restrict format, ...)",
        "int (char*, size_t, const char*, ...)",
    ),
    (
        "void qsort(void *base, size_t nmemb, size_t size, int (*compar)(const void *, const void *));",
        "void (void*, size_t, size_t, int (*)(const void*, const void*))",
    ),
    (
        "void *bsearch(const void *key, const void *base, size_t n, size_t size, compare c);",
        "void* (const void*, const void*, size_t, size_t, int (*)(const void*, const void*))",
    ),
    ("long int strtol(const char *nptr, char **endptr, int base);", "long (const char*, char**, int)"),
    (
        "unsigned long long int strtoull(const char *restrict nptr, char **restrict endptr, int base);",
        "unsigned long long (const char*, char**, int)",
    ),
    (
        "extern char *strtok_r(char *s, const char *delim, char **saveptr);",
        "char* (char*, const char*, char**)",
    ),
    (
        "int execve(const char *path, char *const argv[], char *const envp[]);",
        "int (const char*, char* const*, char* const*)",
    ),
    ("int main(int argc, char *argv[])", "int (int, char**)"),
    ("ssize_t read(int fd, void *buf, size_t count);", "ssize_t (int, void*, size_t)"),
    ("int atexit(void (*function)(void));", "int (void (*)(void))"),
    ("_Noreturn void exit(int status);", "void (int)"),
    ("void abort(void);", "void (void)"),
    ("int rand();", "int (void)"),
    (
        "struct tm *localtime_r(const int64_t *timep, struct tm *result);",
        "struct tm* (const int64_t*, struct tm*)",
    ),
    ("struct tm *gmtime(const long *)", "struct tm* (const long*)"),
    (
        "size_t strftime(char *s, size_t max, const char *format, const struct tm *tm)",
        "size_t (char*, size_t, const char*, const struct tm*)",
    ),
    (
        "int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res);",
        "int (const char*, const char*, const struct addrinfo*, struct addrinfo**)",
    ),
    ("int ioctl(int fd, unsigned long request, ...);", "int (int, unsigned long, ...)"),
    ("double pow(double x, double y);", "double (double, double)"),
    ("float sqrtf(float);", "float (float)"),
    ("long double fabsl(long double);", "long double (long double)"),
    ("double long f(void)", "long double (void)"),
    ("int abs(int);", "int (int)"),
    ("wchar_t *wcscpy(wchar_t *restrict, const wchar_t *restrict)", "wchar_t* (wchar_t*, const wchar_t*)"),
    (
        "int pthread_create(unsigned long *restrict thread, const union pthread_attr_t *restrict attr, void *(*start_routine)(void *), void *restrict arg);",
        "int (unsigned long*, const union pthread_attr_t*, void* (*)(void*), void*)",
    ),
    (
        "int nftw(const char *dirpath, int (*fn)(const char *fpath, const struct stat *sb, int typeflag, struct FTW *ftwbuf), int nopenfd, int flags);",
        "int (const char*, int (*)(const char*, const struct stat*, int, struct FTW*), int, int)",
    ),
    (
        "int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact);",
        "int (int, const struct sigaction*, struct sigaction*)",
    ),
    // zlib.
    ("int inflate(z_streamp strm, int flush);", "int (struct z_stream_s*, int)"),
    (
        "int deflateInit_(z_stream *strm, int level, const char *version, int stream_size)",
        "int (struct z_stream_s*, int, const char*, int)",
    ),
    (
        "int compress(Bytef *dest, uLong *destLen, const Bytef *source, uLong sourceLen);",
        "int (unsigned char*, unsigned long*, const unsigned char*, unsigned long)",
    ),
    (
        "uLong crc32(uLong crc, const Bytef *buf, uInt len);",
        "unsigned long (unsigned long, const unsigned char*, unsigned int)",
    ),
    ("void set(alloc_func f, voidpf opaque)", "void (void* (*)(void*, unsigned int, unsigned int), void*)"),
    // SQLite.
    (
        "int sqlite3_exec(struct sqlite3*, const char *sql, int (*callback)(void*,int,char**,char**), void *, char **errmsg);",
        "int (struct sqlite3*, const char*, int (*)(void*, int, char**, char**), void*, char**)",
    ),
    (
        "int sqlite3_create_function(struct sqlite3 *db, const char *zFunctionName, int nArg, int eTextRep, void *pApp, void (*xFunc)(struct sqlite3_context*,int,struct sqlite3_value**), void (*xStep)(struct sqlite3_context*,int,struct sqlite3_value**), void (*xFinal)(struct sqlite3_context*))",
        "int (struct sqlite3*, const char*, int, int, void*, void (*)(struct sqlite3_context*, int, struct sqlite3_value**), void (*)(struct sqlite3_context*, int, struct sqlite3_value**), void (*)(struct sqlite3_context*))",
    ),
    (
        "const unsigned char *sqlite3_column_text(struct sqlite3_stmt*, int iCol);",
        "const unsigned char* (struct sqlite3_stmt*, int)",
    ),
    ("sqlite3_int64 sqlite3_last_insert_rowid(struct sqlite3*);", "long long (struct sqlite3*)"),
    (
        "void *sqlite3_update_hook(struct sqlite3*, void(*)(void *,int ,char const *,char const *,sqlite3_int64), void*);",
        "void* (struct sqlite3*, void (*)(void*, int, const char*, const char*, long long), void*)",
    ),
    ("char *sqlite3_mprintf(const char*,...);", "char* (const char*, ...)"),
    ("int (*)(void*, int, char**, char**) f(void)", "int (*)(void*, int, char**, char**) (void)"),
    // The words of C's own types, in any order.
    ("unsigned long long int f(void)", "unsigned long long (void)"),
    ("long unsigned int f(long unsigned)", "unsigned long (unsigned long)"),
    ("int unsigned long long f(void)", "unsigned long long (void)"),
    ("long long f(int long long signed)", "long long (long long)"),
    ("short int f(short unsigned int, signed short)", "short (unsigned short, short)"),
    ("signed f(unsigned, signed int)", "int (unsigned int, int)"),
    ("char f(signed char, char unsigned)", "char (signed char, unsigned char)"),
    ("bool f(_Bool)", "_Bool (_Bool)"),
    (
        "uintptr_t f(intptr_t, ptrdiff_t, intmax_t, uintmax_t)",
        "uintptr_t (intptr_t, ptrdiff_t, intmax_t, uintmax_t)",
    ),
    (
        "uint8_t f(int8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t)",
        "uint8_t (int8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t)",
    ),
    // `const` wherever it can stand.
    ("char const *f(char const *const)", "const char* (const char*)"),
    ("int const f(const int, int const)", "int (int, int)"),
    ("void f(int const *const *const *)", "void (const int* const* const*)"),
    ("void f(int * const * * volatile const)", "void (int* const**)"),
    ("void f(unsigned const long * p)", "void (const unsigned long*)"),
    ("void f(const char *const *const restrict x)", "void (const char* const*)"),
    ("void f(void (*const callback)(const int))", "void (void (*)(int))"),
    (
        "void f(void (**callbacks)(void), void (*const *more)(void))",
        "void (void (**)(void), void (*const*)(void))",
    ),
    ("void f(point const *, struct tm const *)", "void (const struct point*, const struct tm*)"),
    // Structs, enumerations and arrays.
    ("point f(point p)", "struct point { double x; double y; } (struct point { double x; double y; })"),
    ("struct { int x[2][3]; char c, *p; } f(void)", "struct { int x[2][3]; char c; char* p; } (void)"),
    (
        "void f(struct pair { int a; struct { float b; } c; } p)",
        "void (struct pair { int a; struct { float b; } c; })",
    ),
    ("void f(struct ops { int (*open)(const char *, int); void (*close)(int); } *ops)", "void (struct ops*)"),
    ("enum colour f(enum colour, enum unknown, level)", "enum colour (enum colour, enum unknown, int)"),
    (
        "void f(double v[3], const float w[], row r, char b[0x10])",
        "void (double*, const float*, int*, char*)",
    ),
    // Pointers to functions, and conventions.
    ("void f(void (*g)(int (*h)(char), ...))", "void (void (*)(int (*)(char), ...))"),
    ("void (*)(int) signal(int, void (*)(int))", "void (*)(int) (int, void (*)(int))"),
    ("int __attribute__((ms_abi)) f(int)", "int __attribute__((ms_abi)) (int)"),
    ("__attribute__((__ms_abi__)) int f(int);", "int __attribute__((ms_abi)) (int)"),
    ("int f(int) __attribute__((sysv_abi));", "int __attribute__((sysv_abi)) (int)"),
    ("int f(int (__attribute__((ms_abi)) *callback)(int))", "int (int __attribute__((ms_abi)) (*)(int))"),
    // What stands for `...` in one call.
    ("int printf(const char *, ..., int, double)", "int (const char*, ..., int, double)"),
    ("int f(...)", "int (...)"),
    ("\n  static inline\tint\r\n f ( register int x )\n;\n", "int (int)"),
];

/// Text that is no signature: the column, and the message.
const REFUSED: &[(&str, usize, &str)] = &[
    ("", 1, "a type was expected, and the end came"),
    ("   ", 4, "a type was expected, and the end came"),
    ("int", 4, "the parameters in parentheses was expected, and the end came"),
    ("int (", 6, "a type was expected, and the end came"),
    ("int ()x", 7, "the end was expected, and `x` came"),
    ("int f(int", 10, "`,` or `)` was expected, and the end came"),
    ("int f(int,", 11, "a type was expected, and the end came"),
    ("int f(int,)", 11, "a type was expected, and `)` came"),
    ("int f(,)", 7, "a type was expected, and `,` came"),
    ("int f(int x y)", 13, "`,` or `)` was expected, and `y` came"),
    ("int f int)", 7, "the parameters in parentheses was expected, and `int` came"),
    ("int f(int))", 11, "the end was expected, and `)` came"),
    ("int f(void x)", 7, "a parameter cannot be `void`; leave it out"),
    ("int f(void, int)", 7, "a parameter cannot be `void`; leave it out"),
    ("int f(int, void)", 12, "a parameter cannot be `void`; leave it out"),
    ("int f(const void)", 7, "a parameter cannot be `void`; leave it out"),
    ("int f(unknown_t x)", 7, "there is no type `unknown_t`; declare it first"),
    ("FILE *fopen(const char*)", 1, "there is no type `FILE`; declare it first"),
    (
        "int f(union { int x; } u)",
        7,
        "a union is not passed by value here: libffi has no description of it; pass a pointer to it",
    ),
    (
        "int f(union u u)",
        7,
        "`union u` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "int f(union)",
        7,
        "a union is not passed by value here: libffi has no description of it; pass a pointer to it",
    ),
    (
        "int f(union u *, union { int x; } *)",
        18,
        "a union is not passed by value here: libffi has no description of it; pass a pointer to it",
    ),
    (
        "int f(struct unknown s)",
        7,
        "`struct unknown` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "struct unknown f(void)",
        1,
        "`struct unknown` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "int f(struct __attribute__((packed)) { char c; int i; } s)",
        29,
        "a packed struct is not passed by value here: libffi lays fields out at their natural alignment; pass a pointer to it",
    ),
    (
        "int f(struct { char c; } __attribute__((packed)) s)",
        41,
        "a packed struct is not passed by value here: libffi lays fields out at their natural alignment; pass a pointer to it",
    ),
    (
        "int f(struct { char c; } __attribute__((aligned(8))) s)",
        41,
        "a type with an alignment of its own is not passed by value here; pass a pointer to it",
    ),
    (
        "int f(struct { int x : 3; } s)",
        20,
        "`x` is a bit-field, and those are not passed by value here; pass a pointer to the struct",
    ),
    ("double _Complex f(void)", 8, "a complex number is not passed by value here; pass a pointer to it"),
    ("_Complex double f(void)", 1, "a complex number is not passed by value here; pass a pointer to it"),
    ("complex f(void)", 1, "a complex number is not passed by value here; pass a pointer to it"),
    ("__int128 f(void)", 1, "libffi has no integer of that size; pass a pointer to it"),
    ("int f(unsigned __int128)", 16, "libffi has no integer of that size; pass a pointer to it"),
    ("unsigned _BitInt(7) f(void)", 10, "libffi has no integer of that size; pass a pointer to it"),
    (
        "_Atomic int f(void)",
        1,
        "a type with an alignment of its own is not passed by value here; pass a pointer to it",
    ),
    (
        "_Alignas(8) int f(void)",
        1,
        "a type with an alignment of its own is not passed by value here; pass a pointer to it",
    ),
    ("int f(..., ...)", 15, "there is one `...` in a signature at most"),
    ("int f(int, ..., int, ...)", 25, "there is one `...` in a signature at most"),
    ("int f(int ...)", 11, "`,` or `)` was expected, and `.` came"),
    (
        "int f(int, ..., short)",
        1,
        "`short` cannot be passed for `...`: C promotes it; declare the type it is promoted to",
    ),
    (
        "int f(int, ..., float)",
        1,
        "`float` cannot be passed for `...`: C promotes it; declare the type it is promoted to",
    ),
    ("int f(int, ..)", 12, "a type was expected, and `.` came"),
    ("int f(int (*)[3])", 12, "a pointer to an array is not read; write it as a pointer to the element"),
    ("int f(int (*x)[3])", 12, "a pointer to an array is not read; write it as a pointer to the element"),
    ("int f(int x[2][3])", 12, "a pointer to an array is not read; write it as a pointer to the element"),
    (
        "int f(int (*x[3][2])(void))",
        14,
        "a pointer to an array is not read; write it as a pointer to the element",
    ),
    ("int f(int (x))", 12, "the `*` of a pointer to a function was expected, and `x` came"),
    ("int f(int x(void))", 12, "`,` or `)` was expected, and `(` came"),
    ("int f(int x[010])", 13, "octal numbers are not read; write it in decimal or as 0x"),
    ("int f(int x[00])", 13, "octal numbers are not read; write it in decimal or as 0x"),
    ("int f(int x[n])", 13, "the length of the array was expected, and `n` came"),
    ("int f(int x[-1])", 13, "the length of the array was expected, and `-` came"),
    ("int f(int x[65537])", 13, "the array is too long to be passed by value; pass a pointer to it"),
    ("int f(int x[99999999999999999999])", 13, "the number is too large"),
    ("int f(int x[3)", 14, "`]` was expected, and `)` came"),
    (
        "int f(struct { int x[]; } s)",
        21,
        "an array without a length is not passed by value; leave it out, or pass a pointer to the struct",
    ),
    (
        "int f(struct { int x[0]; } s)",
        7,
        "`x` is an array of no elements; leave it out, and pass a pointer to the struct if it ends with one",
    ),
    (
        "int f(struct { int n; char data[]; } s)",
        32,
        "an array without a length is not passed by value; leave it out, or pass a pointer to the struct",
    ),
    ("int f(struct { void x; } s)", 7, "`x` cannot be `void`; only a result can"),
    (
        "int f(struct {} s)",
        7,
        "a struct without fields has no size in C; give it a field, or pass a pointer to it",
    ),
    ("int f(struct { int x; int x; } s)", 27, "there are two fields `x`"),
    ("int f(struct { int; } s)", 19, "the name of a field was expected, and `;` came"),
    ("int f(struct { int x } s)", 22, "`;` was expected, and `}` came"),
    ("int f(struct { int x; s)", 23, "there is no type `s`; declare it first"),
    ("int f(struct)", 13, "a tag or `{` was expected, and `)` came"),
    (
        "row f(void)",
        1,
        "a function cannot return an array; let it return a struct that holds one, or a pointer",
    ),
    ("int[3] (void)", 4, "the parameters in parentheses was expected, and `[` came"),
    ("int f(void) /* comment */", 13, "the end was expected, and `/` came"),
    ("int /* comment */ f(void)", 5, "the parameters in parentheses was expected, and `/` came"),
    ("// comment\nint f(void)", 1, "a type was expected, and `/` came"),
    ("int f(void); int g(void);", 14, "the end was expected, and `int` came"),
    ("int f(void) {", 13, "the end was expected, and `{` came"),
    (
        "int *(*f)(void)",
        8,
        "a function that returns a pointer to a function is written `result (*)(parameters) name(parameters)` here, or with a typedef",
    ),
    (
        "void (*signal(int sig, void (*func)(int)))(int);",
        8,
        "a function that returns a pointer to a function is written `result (*)(parameters) name(parameters)` here, or with a typedef",
    ),
    (
        "int (*f)(int)",
        7,
        "a function that returns a pointer to a function is written `result (*)(parameters) name(parameters)` here, or with a typedef",
    ),
    ("long long long f(void)", 1, "`long long long` is no type of C"),
    ("long char f(void)", 1, "`long char` is no type of C"),
    ("unsigned signed f(void)", 1, "`unsigned signed` is no type of C"),
    ("unsigned float f(void)", 1, "`unsigned float` is no type of C"),
    ("short long f(void)", 1, "`short long` is no type of C"),
    ("long float f(void)", 1, "`long float` is no type of C"),
    ("int int f(void)", 1, "`int int` is no type of C"),
    ("unsigned size_t f(void)", 17, "the parameters in parentheses was expected, and `f` came"),
    ("const f(void)", 7, "there is no type `f`; declare it first"),
    ("static f(void)", 8, "there is no type `f`; declare it first"),
    ("* f(void)", 1, "a type was expected, and `*` came"),
    ("3 f(void)", 1, "a type was expected, and `3` came"),
    ("int f(int é)", 11, "`,` or `)` was expected, and `é` came"),
    ("intf(void)", 1, "there is no type `intf`; declare it first"),
    ("int f(int\u{a0}x)", 10, "`,` or `)` was expected, and `\\u{a0}` came"),
    ("int &f(void)", 5, "the parameters in parentheses was expected, and `&` came"),
    ("int f(int &x)", 11, "`,` or `)` was expected, and `&` came"),
    ("int f(int x = 3)", 13, "`,` or `)` was expected, and `=` came"),
    ("int __stdcall f(int)", 15, "the parameters in parentheses was expected, and `f` came"),
    (
        "int __attribute__((noreturn)) f(int)",
        20,
        "the attribute `noreturn` is not known; leave it out if it does not change how values are passed",
    ),
    ("int __attribute__((ms_abi) f(int)", 28, "`))` was expected, and `f` came"),
    ("int __attribute__(ms_abi) f(int)", 19, "`((` was expected, and `ms_abi` came"),
    ("int f(struct tm { int x; } t)", 7, "`struct tm` has been declared already, with other fields"),
    ("int f(enum)", 11, "a tag or `{` was expected, and `)` came"),
    (
        "int f(int __attribute__((ms_abi)) x)",
        35,
        "the `(` of a pointer to a function was expected, and `x` came",
    ),
    ("int\nf(int,\n  unknown)", 3, "there is no type `unknown`; declare it first"),
    ("\tint\tf(\tunknown)", 9, "there is no type `unknown`; declare it first"),
    ("int f(int[65536] x)", 18, "`,` or `)` was expected, and `x` came"),
    (
        "int f(struct { char x[65537]; } s)",
        23,
        "the array is too long to be passed by value; pass a pointer to it",
    ),
    (
        "int f(struct { char x[65536]; } s, int)",
        1,
        "the type has 65544 bytes, and 65536 at most are passed by value; pass a pointer to it",
    ),
    ("int f(row *)", 11, "a pointer to an array is not read; write it as a pointer to the element"),
    ("void f(row *rows[4])", 12, "a pointer to an array is not read; write it as a pointer to the element"),
    (
        "int f(int ********************************* x)",
        43,
        "types are nested more than 32 deep; simplify the declaration",
    ),
    ("typedef int f", 1, "there is no type `typedef`; declare it first"),
    ("int f(va_list)", 7, "there is no type `va_list`; declare it first"),
    ("int f(size_t int)", 14, "`,` or `)` was expected, and `int` came"),
    ("int f(square s)", 7, "a pointer to an array is not read; write it as a pointer to the element"),
    ("int f(const square *)", 20, "a pointer to an array is not read; write it as a pointer to the element"),
];

/// Declarations that are none: line, column and message.
const REFUSED_DECLARATIONS: &[(&str, usize, usize, &str)] = &[
    ("struct tm { int other; };", 1, 1, "`struct tm` has been declared already, with other fields"),
    (
        "struct a { int x; };\nstruct a { int y; };",
        2,
        1,
        "`struct a` has been declared already, with other fields",
    ),
    ("typedef int point;", 1, 13, "`point` has been declared already, as another type"),
    (
        "typedef struct sqlite3 array[2];",
        1,
        9,
        "`struct sqlite3` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "typedef struct sqlite3 u; struct e { u x; };",
        1,
        38,
        "`struct sqlite3` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    ("enum e { };", 1, 10, "the name of a constant was expected, and `}` came"),
    ("typedef int;", 1, 12, "the name of the type was expected, and `;` came"),
    ("int x;", 1, 5, "`;` was expected, and `x` came"),
    ("int f(void);", 1, 5, "`;` was expected, and `f` came"),
    ("enum e { A = 0x80000000 };", 1, 25, "`A` does not fit an `int`"),
    ("enum e { A = 2147483647, B };", 1, 28, "`B` does not fit an `int`"),
    ("enum e { A = 01 };", 1, 14, "octal numbers are not read; write it in decimal or as 0x"),
    ("enum e { A = B };", 1, 14, "a number was expected, and `B` came"),
    (
        "struct e { };",
        1,
        1,
        "a struct without fields has no size in C; give it a field, or pass a pointer to it",
    ),
    ("struct e { int x }", 1, 18, "`;` was expected, and `}` came"),
    ("struct e { int x; }", 1, 20, "`;` was expected, and the end came"),
    ("struct e { int x; int x; };", 1, 23, "there are two fields `x`"),
    ("struct e { void x; };", 1, 1, "`x` cannot be `void`; only a result can"),
    (
        "struct e { int x[0]; };",
        1,
        1,
        "`x` is an array of no elements; leave it out, and pass a pointer to the struct if it ends with one",
    ),
    (
        "struct e { int x[]; };",
        1,
        17,
        "an array without a length is not passed by value; leave it out, or pass a pointer to the struct",
    ),
    (
        "struct e { int x[65537]; };",
        1,
        18,
        "the array is too long to be passed by value; pass a pointer to it",
    ),
    (
        "struct e { int x[20000]; };",
        1,
        17,
        "the type has 80000 bytes, and 65536 at most are passed by value; pass a pointer to it",
    ),
    (
        "struct e { int a[10000]; int b[10000]; };",
        1,
        1,
        "the type has 80000 bytes, and 65536 at most are passed by value; pass a pointer to it",
    ),
    (
        "struct e { int x : 3; };",
        1,
        16,
        "`x` is a bit-field, and those are not passed by value here; pass a pointer to the struct",
    ),
    ("struct e { int : 3; };", 1, 16, "the name of a field was expected, and `:` came"),
    (
        "struct e { struct e inner; };",
        1,
        12,
        "`struct e` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "struct e { struct unknown u; };",
        1,
        12,
        "`struct unknown` has not been declared with its fields; declare it, or pass a pointer to it",
    ),
    (
        "struct e { union { int x; } u; };",
        1,
        12,
        "a union is not passed by value here: libffi has no description of it; pass a pointer to it",
    ),
    ("struct e { int (*f[2](void); };", 1, 22, "`)` was expected, and `(` came"),
    (
        "struct __attribute__((packed)) e { int x; };",
        1,
        23,
        "a packed struct is not passed by value here: libffi lays fields out at their natural alignment; pass a pointer to it",
    ),
    (
        "struct e { int x; } __attribute__((packed));",
        1,
        36,
        "a packed struct is not passed by value here: libffi lays fields out at their natural alignment; pass a pointer to it",
    ),
    (
        "struct e { int x; } __attribute__((aligned(16)));",
        1,
        36,
        "a type with an alignment of its own is not passed by value here; pass a pointer to it",
    ),
    (
        "struct e { _Alignas(16) int x; };",
        1,
        12,
        "a type with an alignment of its own is not passed by value here; pass a pointer to it",
    ),
    ("// comment\nstruct e { int x; };", 1, 1, "a type was expected, and `/` came"),
    ("#define X 1", 1, 1, "a type was expected, and `#` came"),
    (
        "typedef row matrix[3]; typedef matrix *pm;",
        1,
        39,
        "a pointer to an array is not read; write it as a pointer to the element",
    ),
    ("typedef union u u; typedef int u;", 1, 32, "`u` has been declared already, as another type"),
    ("typedef int fn(int);", 1, 15, "`;` was expected, and `(` came"),
    ("struct e { int int; };", 1, 12, "`int int` is no type of C"),
    ("enum e { A, B C };", 1, 15, "`,` or `}` was expected, and `C` came"),
    ("enum e { A = 9999999999 };", 1, 25, "`A` does not fit an `int`"),
    (
        "struct e { const row *p; };",
        1,
        22,
        "a pointer to an array is not read; write it as a pointer to the element",
    ),
];

/// Rows with calling conventions of x86_64 are for it.
fn is_for_this_target(text: &str) -> bool {
    Abi::Win64.is_supported() || !(text.contains("ms_abi") || text.contains("sysv_abi"))
}

#[test]
fn declarations_that_people_write_are_read() {
    let types = declared();
    assert!(READ.len() >= 60);
    for (text, printed) in READ.iter().filter(|(text, _)| is_for_this_target(text)) {
        let signature = types.signature(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(signature.to_string(), *printed, "{text}");
        assert_eq!(Signature::parse(printed).as_ref(), Ok(&signature), "{printed}");
    }
}

#[test]
fn what_is_no_signature_is_refused_with_the_column() {
    let types = declared();
    for (text, column, message) in REFUSED.iter().filter(|(text, ..)| is_for_this_target(text)) {
        let error = types.signature(text).expect_err(text);
        assert_eq!((error.column(), error.message()), (*column, *message), "{text:?}");
        points_into(text, &error).unwrap();
    }
}

#[test]
fn what_is_no_declaration_is_refused_and_nothing_is_taken_in() {
    let before = declared();
    for (text, line, column, message) in REFUSED_DECLARATIONS {
        // What stands before the fault is not taken in either.
        let first = "struct first { int x; }; typedef int first_t; enum { FIRST = 1 };";
        for (text, column) in [
            ((*text).to_owned(), *column),
            (format!("{first}{text}"), column + first.len() * usize::from(*line == 1)),
        ] {
            let mut types = before.clone();
            let error = types.declare(&text).expect_err(&text);
            assert_eq!(
                (error.line(), error.column(), error.message()),
                (*line, column, *message),
                "{text:?}"
            );
            for name in ["first_t", "e", "a", "u", "fn"] {
                assert_eq!(types.get(name), None, "{text:?}");
            }
            for name in ["FIRST", "A", "B"] {
                assert_eq!(types.constant(name), None, "{text:?}");
            }
            for tag in ["first", "e", "a"] {
                assert!(types.signature(&format!("void (struct {tag})")).is_err(), "{text:?}");
            }
            // And what was there is as it was.
            assert_eq!(types.get("point"), before.get("point"));
            assert_eq!(types.signature("void (struct tm)"), before.signature("void (struct tm)"));
        }
    }
}

#[test]
fn the_same_may_be_declared_again() {
    let mut types = declared();
    types.declare("struct tm { int tm_sec, tm_min, tm_hour; const char *tm_zone; };").unwrap();
    types.declare("typedef int (*compare)(const void *a, const void *b); typedef int row[0x3];").unwrap();
    types.declare("; struct opaque; enum colour; typedef enum colour colour;").unwrap();
    assert_eq!(types.get("colour"), Some(&Type::Enum("colour".into())));
    assert_eq!(
        ["RED", "GREEN", "BLUE", "LOW", "HIGH"].map(|name| types.constant(name)),
        [0, 5, 6, -1, 0].map(Some)
    );
}

#[test]
fn nesting_has_an_end() {
    let structs = |depth| {
        format!(
            "void ({}int x;{} p)",
            "struct { ".repeat(depth),
            " } x;".repeat(depth).trim_end_matches(" x;")
        )
    };
    let pointers = |depth| format!("void ({}int{})", "void (*)(".repeat(depth), ")".repeat(depth));
    let arrays = |depth| format!("void (struct {{ int x{}; }} p)", "[1]".repeat(depth));
    let message = "types are nested more than 32 deep; simplify the declaration";
    for text in [&structs as &dyn Fn(usize) -> String, &pointers, &arrays] {
        Signature::parse(&text(5)).unwrap_or_else(|error| panic!("{error}"));
        let mut depths = (5..40).filter_map(|depth| Signature::parse(&text(depth)).err());
        assert_eq!(depths.next().expect("it has an end").message(), message);
        for error in depths {
            assert_eq!(error.message(), message);
        }
        assert_eq!(Signature::parse(&text(100_000)).unwrap_err().message(), message);
    }
}

#[test]
fn types_made_by_hand_are_refused_as_declared_ones_are() {
    let int = || Type::Scalar(Scalar::Int);
    let field = |ty| vec![("x".into(), ty)];
    let structure = |fields| Struct::new(None, fields).map(|ty| Type::Struct(Arc::new(ty)));
    assert_eq!(structure(vec![]), Err(TypeError::EmptyStruct));
    assert_eq!(structure(field(Type::Void)), Err(TypeError::Void("x".into())));
    let none = Type::Array(Arc::new(int()), 0);
    assert_eq!(structure(field(none)), Err(TypeError::EmptyArray("x".into())));
    for count in [1 << 16, usize::MAX / 2, usize::MAX] {
        let large = structure(field(Type::Array(Arc::new(int()), count)));
        assert!(matches!(large, Err(TypeError::TooLarge { size }) if size > 1 << 16), "{count}");
    }
    let half = structure(field(Type::Array(Arc::new(int()), 1 << 13))).unwrap();
    assert!(Signature::new(Abi::C, Type::Void, vec![half.clone()]).is_ok());
    let size = Signature::new(Abi::C, half.clone(), vec![half.clone(), half]).unwrap_err();
    assert_eq!(size, TypeError::TooLarge { size: 3 << 15 });
    let deep = (0..40).try_fold(int(), |ty, _| structure(field(ty)));
    assert_eq!(deep, Err(TypeError::TooDeep));
    let deep = (0..200).fold(int(), |ty, _| ty.pointer_to(false));
    assert_eq!(Signature::new(Abi::C, Type::Void, vec![deep]), Err(TypeError::TooDeep));
    let many = Signature::new(Abi::C, Type::Void, vec![int(); 256]);
    assert_eq!(many, Err(TypeError::TooManyParameters { count: 256 }));
    assert_eq!(Signature::new(Abi::C, Type::Void, vec![int(); 255]).unwrap().parameters().len(), 255);
    let array = Type::Array(Arc::new(int()), 2);
    assert_eq!(Signature::new(Abi::C, array.clone(), vec![]), Err(TypeError::ArrayResult));
    let decayed = Signature::new(Abi::C, Type::Void, vec![array]).unwrap();
    assert_eq!(decayed.to_string(), "void (int*)");
    assert!(matches!(Signature::new(Abi::C, Type::Void, vec![Type::Void]), Err(TypeError::Void(_))));
    let short = Type::Scalar(Scalar::Short);
    let dots = Signature::variadic(Abi::C, Type::Void, vec![]).unwrap();
    assert_eq!(dots.with_variadic(core::slice::from_ref(&short)), Err(TypeError::Unpromoted(short)));
}

/// Each name stands for what was declared before it, twice: a short text, and a type that would fill the memory when it is written out.
#[test]
fn what_a_chain_of_names_unfolds_to_has_an_end() {
    let chain = |length: usize, next: &dyn Fn(usize) -> String| {
        let mut text = "typedef int t0;".to_owned();
        (1..=length).for_each(|number| text.push_str(&next(number)));
        Types::new().declare(&text).map_err(|error| error.message().to_owned())
    };
    let deep = "types are nested more than 32 deep; simplify the declaration".to_owned();
    let intricate =
        "written out, the type has more than 20000 parts; declare pointers in it as `void*`".to_owned();
    let pointers = |number| format!("typedef t{} *t{number};", number - 1);
    assert_eq!((chain(100, &pointers), chain(100_000, &pointers)), (Ok(()), Err(deep)));
    let functions = |number| format!("typedef void (*t{number})(t{0}, t{0});", number - 1);
    assert_eq!((chain(10, &functions), chain(60, &functions)), (Ok(()), Err(intricate.clone())));
    let structs = |number| format!("typedef struct {{ t{0} *a, *b; t{0} c; }} t{number};", number - 1);
    assert_eq!(chain(10, &structs), Ok(()), "a pointer needs the name alone");
    let anonymous = |number| format!("typedef void (*t{number})(struct {{ t{0} a, b, c; }} *);", number - 1);
    assert_eq!(chain(60, &anonymous), Err(intricate));
}

#[test]
fn a_prototype_has_a_name() {
    let types = Types::new();
    let (name, signature) = types.prototype("double pow(double x, double y);").unwrap();
    assert_eq!((name.as_str(), signature.to_string().as_str()), ("pow", "double (double, double)"));
    let error = types.prototype("double (double)").unwrap_err();
    assert_eq!((error.column(), error.message()), (8, "the name of the function was expected, and `(` came"));
    let error = types.parse("int x").unwrap_err();
    assert_eq!((error.column(), error.message()), (5, "`x` is a name too many; a type has none"));
}

/// Threads that ask for the same signatures, and let them go, get the same.
#[test]
fn equal_signatures_of_several_threads_are_equal() {
    // ThreadSanitizer (`.ci/tsan`) takes a second and more for each.
    const ROUNDS: usize = if cfg!(tsan) { 3 } else { 20 };
    let text = |index: usize| format!("void (enum tag{index}, struct {{ char bytes[{index}]; }})");
    let kept: Vec<_> = (1..50).map(|index| Signature::parse(&text(index)).unwrap()).collect();
    std::thread::scope(|scope| {
        let made = [(); 4].map(|()| {
            scope.spawn(|| {
                // Some of them are kept by nobody meanwhile.
                (0..ROUNDS)
                    .for_each(|_| (1..200).for_each(|index| drop(Signature::parse(&text(index)).unwrap())));
                (1..200).map(|index| Signature::parse(&text(index)).unwrap()).collect::<Vec<_>>()
            })
        });
        let made = made.map(|made| made.join().unwrap());
        for others in &made {
            assert_eq!(made[0], *others);
            assert_eq!(kept, others[..kept.len()]);
        }
    });
}
