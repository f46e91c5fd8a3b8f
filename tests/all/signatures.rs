//! The text of signatures and types: what is read, what is refused and where, and that what is printed is read again.

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use proptest::{prop_assert, prop_assert_eq};
use reentry::dynamic::{Abi, Pointee, Scalar, Signature, SignatureError, Struct, Target, Type, Types};
use std::sync::Arc;

/// A runner that makes the same cases each time.
fn runner(cases: u32) -> TestRunner {
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
    let fields: Vec<_> =
        fields.into_iter().enumerate().map(|(index, (name, ty))| (format!("{name}_{index}").into(), ty)).collect();
    let anonymous = Type::Struct(Arc::new(Struct::new(None, fields.clone()).expect("small, and with fields")));
    if !tagged {
        return anonymous;
    }
    // The same fields, the same tag; and other fields another one.
    let hash = anonymous.to_string().bytes().fold(0_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
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
            // An array of pointers to functions has no text here.
            if ty.function().is_some() {
                return ty;
            }
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
    (abis(), result, vec(types, 0..5), any::<Option<usize>>()).prop_map(|(abi, result, parameters, variadic)| {
        let Some(fixed) = variadic else {
            return Signature::new(abi, result, parameters).expect("small");
        };
        let fixed = fixed % (parameters.len() + 1);
        let named: Vec<_> = parameters[fixed..].iter().map(Type::promoted).collect();
        let open = Signature::variadic(abi, result, parameters[..fixed].to_vec()).expect("small");
        open.with_variadic(&named).expect("promoted")
    })
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
    let arrays = (values(), vec(1..4_usize, 0..3)).prop_map(|(ty, counts)| match ty.function() {
        Some(_) => ty,
        None => counts.into_iter().fold(ty, |ty, count| Type::Array(Arc::new(ty), count)),
    });
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
        "int", "unsigned", "long", "char", "void", "const", "struct", "union", "enum", "typedef", "double", "x", "point", "*", "*",
        "(", ")", "(", ")", "{", "}", "[", "]", ",", ";", "...", "=", "-", ":", "3", "07", "0x10", "\n", "é", "\t", "_Bool",
        "__attribute__((ms_abi))", "__attribute__((packed))", "size_t", "(*)", "(void)", "int x;", "/", "#", "99999999999999999999",
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
        typedef int row[3];
        struct tm { int tm_sec, tm_min, tm_hour; const char *tm_zone; };
        typedef struct { double x, y; } point;
        enum colour { RED, GREEN = 5, BLUE, };
        typedef enum { LOW = -1, HIGH } level;
    ";
    types.declare(text).unwrap_or_else(|error| panic!("{error}"));
    types
}

const READ: &[(&str, &str)] = &[
    // The C library.
    ("int printf(const char *restrict format, ...);", "int (const char*, ...)"),
    ("int snprintf(char *restrict s, size_t n, const char *restrict format, ...)", "int (char*, size_t, const char*, ...)"),
    ("void qsort(void *base, size_t nmemb, size_t size, int (*compar)(const void *, const void *));", "void (void*, size_t, size_t, int (*)(const void*, const void*))"),
    ("void *bsearch(const void *key, const void *base, size_t n, size_t size, compare c);", "void* (const void*, const void*, size_t, size_t, int (*)(const void*, const void*))"),
    ("long int strtol(const char *nptr, char **endptr, int base);", "long (const char*, char**, int)"),
    ("unsigned long long int strtoull(const char *restrict nptr, char **restrict endptr, int base);", "unsigned long long (const char*, char**, int)"),
    ("extern char *strtok_r(char *s, const char *delim, char **saveptr);", "char* (char*, const char*, char**)"),
    ("int execve(const char *path, char *const argv[], char *const envp[]);", "int (const char*, char* const*, char* const*)"),
    ("int main(int argc, char *argv[])", "int (int, char**)"),
    ("ssize_t read(int fd, void *buf, size_t count);", "ssize_t (int, void*, size_t)"),
    ("int atexit(void (*function)(void));", "int (void (*)(void))"),
    ("_Noreturn void exit(int status);", "void (int)"),
    ("void abort(void);", "void (void)"),
    ("int rand();", "int (void)"),
    ("time_t *f", ""),
    ("struct tm *localtime_r(const int64_t *timep, struct tm *result);", "struct tm* (const int64_t*, struct tm*)"),
    ("struct tm *gmtime(const long *)", "struct tm* (const long*)"),
    ("size_t strftime(char *s, size_t max, const char *format, const struct tm *tm)", "size_t (char*, size_t, const char*, const struct tm*)"),
    ("int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res);", "int (const char*, const char*, const struct addrinfo*, struct addrinfo**)"),
    ("int ioctl(int fd, unsigned long request, ...);", "int (int, unsigned long, ...)"),
    ("int fcntl(int fd, int op, ... /", ""),
    ("double pow(double x, double y);", "double (double, double)"),
    ("float sqrtf(float);", "float (float)"),
    ("long double fabsl(long double);", "long double (long double)"),
    ("double long f(void)", "long double (void)"),
    ("int abs(int);", "int (int)"),
    ("wchar_t *wcscpy(wchar_t *restrict, const wchar_t *restrict)", "wchar_t* (wchar_t*, const wchar_t*)"),
    ("int pthread_create(unsigned long *restrict thread, const union pthread_attr_t *restrict attr, void *(*start_routine)(void *), void *restrict arg);", "int (unsigned long*, const union pthread_attr_t*, void* (*)(void*), void*)"),
    ("int nftw(const char *dirpath, int (*fn)(const char *fpath, const struct stat *sb, int typeflag, struct FTW *ftwbuf), int nopenfd, int flags);", "int (const char*, int (*)(const char*, const struct stat*, int, struct FTW*), int, int)"),
    ("int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact);", "int (int, const struct sigaction*, struct sigaction*)"),
    // zlib.
    ("int inflate(z_streamp strm, int flush);", "int (struct z_stream_s*, int)"),
    ("int deflateInit_(z_stream *strm, int level, const char *version, int stream_size)", "int (struct z_stream_s*, int, const char*, int)"),
    ("int compress(Bytef *dest, uLong *destLen, const Bytef *source, uLong sourceLen);", "int (unsigned char*, unsigned long*, const unsigned char*, unsigned long)"),
    ("uLong crc32(uLong crc, const Bytef *buf, uInt len);", "unsigned long (unsigned long, const unsigned char*, unsigned int)"),
    ("void set(alloc_func f, voidpf opaque)", "void (void* (*)(void*, unsigned int, unsigned int), void*)"),
    // SQLite.
    ("int sqlite3_exec(struct sqlite3*, const char *sql, int (*callback)(void*,int,char**,char**), void *, char **errmsg);", "int (struct sqlite3*, const char*, int (*)(void*, int, char**, char**), void*, char**)"),
    ("int sqlite3_create_function(struct sqlite3 *db, const char *zFunctionName, int nArg, int eTextRep, void *pApp, void (*xFunc)(struct sqlite3_context*,int,struct sqlite3_value**), void (*xStep)(struct sqlite3_context*,int,struct sqlite3_value**), void (*xFinal)(struct sqlite3_context*))", "int (struct sqlite3*, const char*, int, int, void*, void (*)(struct sqlite3_context*, int, struct sqlite3_value**), void (*)(struct sqlite3_context*, int, struct sqlite3_value**), void (*)(struct sqlite3_context*))"),
    ("const unsigned char *sqlite3_column_text(struct sqlite3_stmt*, int iCol);", "const unsigned char* (struct sqlite3_stmt*, int)"),
    ("sqlite3_int64 sqlite3_last_insert_rowid(struct sqlite3*);", "long long (struct sqlite3*)"),
    ("void *sqlite3_update_hook(struct sqlite3*, void(*)(void *,int ,char const *,char const *,sqlite3_int64), void*);", "void* (struct sqlite3*, void (*)(void*, int, const char*, const char*, long long), void*)"),
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
    ("uintptr_t f(intptr_t, ptrdiff_t, intmax_t, uintmax_t)", "uintptr_t (intptr_t, ptrdiff_t, intmax_t, uintmax_t)"),
    ("uint8_t f(int8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t)", "uint8_t (int8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t)"),
    // `const` wherever it can stand.
    ("char const *f(char const *const)", "const char* (const char*)"),
    ("int const f(const int, int const)", "int (int, int)"),
    ("void f(int const *const *const *)", "void (const int* const* const*)"),
    ("void f(int * const * * volatile const)", "void (int* const**)"),
    ("void f(unsigned const long * p)", "void (const unsigned long*)"),
    ("void f(const char *const *const restrict x)", "void (const char* const*)"),
    ("void f(void (*const callback)(const int))", "void (void (*)(int))"),
    ("void f(void (**callbacks)(void), void (*const *more)(void))", "void (void (**)(void), void (*const*)(void))"),
    ("void f(point const *, struct tm const *)", "void (const struct point*, const struct tm*)"),
    // Structs, enumerations and arrays.
    ("point f(point p)", "struct point { double x; double y; } (struct point { double x; double y; })"),
    ("struct { int x[2][3]; char c, *p; } f(void)", "struct { int x[2][3]; char c; char* p; } (void)"),
    ("void f(struct pair { int a; struct { float b; } c; } p)", "void (struct pair { int a; struct { float b; } c; })"),
    ("void f(struct ops { int (*open)(const char *, int); void (*close)(int); } *ops)", "void (struct ops*)"),
    ("enum colour f(enum colour, enum unknown, level)", "enum colour (enum colour, enum unknown, int)"),
    ("void f(double v[3], const float w[], row r, row *rows[4])", ""),
    ("void f(double v[3], const float w[], row r, char b[0x10])", "void (double*, const float*, int*, char*)"),
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

const REFUSED: &[(&str, usize, &str)] = &[];

#[test]
fn dump() {
    let types = declared();
    for (text, printed) in READ {
        match types.signature(text) {
            Ok(signature) if signature.to_string() == *printed => {}
            Ok(signature) => println!("DIFF {text}\n  want {printed}\n  got  {signature}"),
            Err(error) => println!("FAIL {text}\n  want {printed}\n{error}"),
        }
    }
    for text in TRY {
        match types.signature(text) {
            Ok(signature) => println!("READ {text:?} {signature}"),
            Err(error) => println!("    ({text:?}, {}, {:?}),", error.column(), error.message()),
        }
    }
    for text in TRY_DECLARE {
        match declared().declare(text) {
            Ok(_) => println!("READ {text:?}"),
            Err(error) => println!("    ({text:?}, {}, {}, {:?}),", error.line(), error.column(), error.message()),
        }
    }
}
const TRY_DECLARE: &[&str] = &[
    "struct tm { int other; };",
    "struct a { int x; };\nstruct a { int y; };",
    "struct a { int x; };\nstruct a { int x; };",
    "typedef int point;",
    "typedef struct sqlite3 sqlite3;",
    "typedef int;",
    "int x;",
    "int f(void);",
    "enum e { A = 0x80000000 };",
    "enum e { A = 2147483647, B };",
    "enum e { A = 01 };",
    "enum e { A = B };",
    "enum { };",
    "enum e;",
    "struct s;",
    "struct e { };",
    "struct e { int x }",
    "struct e { int x; }",
    "struct e { int x; int x; };",
    "struct e { void x; };",
    "struct e { int x[0]; };",
    "struct e { int x[]; };",
    "struct e { int x[65537]; };",
    "struct e { int x[20000]; };",
    "struct e { int a[10000]; int b[10000]; };",
    "struct e { int x : 3; };",
    "struct e { int : 3; };",
    "struct e { struct e inner; };",
    "struct e { struct unknown u; };",
    "struct e { union { int x; } u; };",
    "struct e { int (*f[2])(void); };",
    "struct __attribute__((packed)) e { int x; };",
    "struct e { int x; } __attribute__((packed));",
    "struct e { int x; } __attribute__((aligned(16)));",
    "struct e { _Alignas(16) int x; };",
    "// comment\nstruct e { int x; };",
    "#define X 1",
    "typedef row matrix[3]; typedef matrix *pm;",
    "typedef union u u;",
    "typedef int fn(int);",
];
const TRY: &[&str] = &[
    "", "   ", "int", "int (", "int ()x", "int f(int", "int f(int,", "int f(int,)", "int f(,)", "int f(int x y)", "int f int)", "int f(int))",
    "int f(void x)", "int f(void, int)", "int f(int, void)", "int f(const void)", "int f(unknown_t x)", "FILE *fopen(const char*)",
    "int f(union { int x; } u)", "int f(union u u)", "int f(union)", "int f(union u *, union { int x; } *)", "int f(struct unknown s)", "struct unknown f(void)",
    "int f(struct __attribute__((packed)) { char c; int i; } s)", "int f(struct { char c; } __attribute__((packed)) s)", "int f(struct { char c; } __attribute__((aligned(8))) s)",
    "int f(struct { int x : 3; } s)", "double _Complex f(void)", "_Complex double f(void)", "complex f(void)", "__int128 f(void)", "int f(unsigned __int128)", "unsigned _BitInt(7) f(void)",
    "_Atomic int f(void)", "_Alignas(8) int f(void)",
    "int f(..., ...)", "int f(int, ..., int, ...)", "int f(int ...)", "int f(int, ..., short)", "int f(int, ..., float)", "int f(int, ..)",
    "int f(int (*)[3])", "int f(int (*x)[3])", "int f(int x[2][3])", "int f(int (*x[3])(void))", "int f(int (x))", "int f(int x(void))", "int f(int x[010])", "int f(int x[00])", "int f(int x[n])", "int f(int x[-1])", "int f(int x[65537])", "int f(int x[99999999999999999999])", "int f(int x[3)", "int f(struct { int x[]; } s)", "int f(struct { int x[0]; } s)", "int f(struct { int n; char data[]; } s)", "int f(struct { void x; } s)", "int f(struct {} s)", "int f(struct { int x; int x; } s)", "int f(struct { int; } s)", "int f(struct { int x } s)", "int f(struct { int x; s)", "int f(struct)",
    "row f(void)", "int[3] (void)", "int f(void) /* comment */", "int /* comment */ f(void)", "// comment\nint f(void)", "int f(void); int g(void);", "int f(void) {", "int *(*f)(void)", "void (*signal(int sig, void (*func)(int)))(int);", "int (*f)(int)", "long long long f(void)", "long char f(void)", "unsigned signed f(void)", "unsigned float f(void)", "short long f(void)", "long float f(void)", "int int f(void)", "unsigned size_t f(void)", "const f(void)", "static f(void)", "* f(void)", "3 f(void)", "int f(int é)", "intf(void)", "int f(int\u{a0}x)", "int &f(void)", "int f(int &x)", "int f(int x = 3)", "int __stdcall f(int)", "int __attribute__((stdcall)) f(int)", "int __attribute__((noreturn)) f(int)", "int __attribute__((ms_abi) f(int)", "int __attribute__(ms_abi) f(int)", "int f(struct tm { int x; } t)", "enum f(void)", "int f(enum)", "int f(int __attribute__((ms_abi)) x)", "int\nf(int,\n  unknown)", "\tint\tf(\tunknown)", "int f(int[65536] x)", "int f(struct { char x[65537]; } s)", "int f(struct { char x[65536]; } s, int)", "int f(const row, const row)", "int f(row *)", "void f(row *rows[4])","int f(int ********************************* x)", "typedef int f", "int f(va_list)", "void f(struct tm t, enum colour const)",
];
