//! The scripts do what they say, and scripts that are wrong are told what is wrong with them.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::process::{Command, Output};

/// Runs the program, under the emulator that this test runs under, if one does.
fn run(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_dynamic");
    let emulator = std::env::var("REENTRY_EMULATOR").unwrap_or_default();
    let mut words = emulator.split_whitespace().chain([program]);
    Command::new(words.next().expect("the program at least")).args(words).args(arguments).output().unwrap()
}

/// Runs one of the scripts, which must succeed, and expects these lines in this order.
#[track_caller]
fn script_prints(name: &str, expected: &[&str]) -> [u64; 4] {
    let output = run(&[&format!("scripts/{name}.script")]);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{said}");
    let mut lines = said.lines();
    for expected in expected {
        assert!(lines.any(|line| line == *expected), "`{expected}` is missing or out of order in:\n{said}");
    }
    let counts = lines.next_back().unwrap();
    let mut counts = counts.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    core::array::from_fn(|_| counts.next().expect("four counts in the last line"))
}

/// Runs a script that must fail with exit code 1, and say this, and no more.
#[track_caller]
fn script_fails(text: &str, expected: &str) {
    let output = run(&["-e", text]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*errors), (Some(1), expected));
}

#[test]
fn a_script_uses_the_c_library() {
    let [calls, callbacks, collections, moved] = script_prints(
        "libc",
        &[
            "pow(2, 10) = 1024.0",
            "div(47, 10) = 4 remainder 7",
            "strlen(\"moving heap\") = 11",
            "snprintf: <00042> <text>",
            "snprintf: <   3.142> <left  >",
            "strtol: 1789 and then \" was a year\"",
            "getenv: axolotl and nil",
            "qsort: [-90, 2, 24, 45, 66, 75, 170, 802] after true comparisons",
            "bsearch: before 75 stands 66",
            "qsort: [anchor, barrier, Handle, pin, Root]",
            "caught: these cannot be compared",
        ],
    );
    assert!(calls > 20 && callbacks > 20, "{calls} {callbacks}");
    assert!(collections > calls + callbacks && moved > collections, "{collections} {moved}");
}

#[test]
fn a_script_uses_zlib() {
    script_prints(
        "zlib",
        &[
            "crc32(\"123456789\") = cbf43926",
            "adler32(\"Wikipedia\") = 11e60398",
            "crc32 in pieces = dbfcdeb0  of the whole = dbfcdeb0",
            "1480 bytes packed into fewer than 100: true",
            "unpacked, they are the same: true",
        ],
    );
}

#[test]
fn sqlite_calls_functions_collations_and_row_callbacks_of_a_script() {
    let [_, callbacks, ..] = script_prints(
        "sqlite",
        &[
            "  year=1897  slug=an-antarctic-mystery",
            "  year=1897  slug=dracula",
            "  year=1871  slug=middlemarch",
            "  year=1851  slug=moby-dick-or-the-whale",
            "  year=1887  slug=a-study-in-scarlet",
            "  year=1895  slug=the-time-machine",
            "6 rows",
            "caught: no more rows, please",
            "SQLite has let go of slug(): 1 closure released",
            "SQLite has let go of the collation: 1 closure released",
        ],
    );
    assert!(callbacks > 15, "{callbacks}");
}

#[test]
fn a_script_that_collects_now_and_then_does_the_same() {
    let output = run(&["--collect-every", "7", "scripts/sqlite.script"]);
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn a_signature_error_points_into_the_script() {
    script_fails(
        "extern \"libm.so.6\" double pow(double, dooble);",
        "-e:1:39: there is no type `dooble`; declare it first\n\
         \x20 extern \"libm.so.6\" double pow(double, dooble);\n\
         \x20                                       ^\n",
    );
    script_fails(
        "// in another line\nextern \"libm.so.6\" double pow(\n    double,\n    );",
        "-e:4:5: a type was expected, and `)` came\n      );\n      ^\n",
    );
    script_fails(
        "print(read(buffer(4), \"innt\"));",
        "-e:1:24: there is no type `innt`; declare it first\n\
         \x20 print(read(buffer(4), \"innt\"));\n\
         \x20                        ^\n",
    );
}

#[test]
fn a_syntax_error_names_its_place() {
    script_fails(
        "let a = 1;\nprint(a +);",
        "-e:2:10: an expression was expected, and `)` came\n  print(a +);\n           ^\n",
    );
}

#[test]
fn an_unknown_symbol_and_an_unknown_library_are_found_before_the_script_runs() {
    for (text, begins) in [
        ("print(1);\nextern \"libm.so.6\" double power(double);", "-e:2:27: `power` is not in libm.so.6: "),
        (
            "print(1);\nextern \"libnone.so.0\" int f(int);",
            "-e:2:8: the library libnone.so.0 cannot be loaded: ",
        ),
    ] {
        let output = run(&["-e", text]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with(begins) && output.status.code() == Some(1), "{errors}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("\n1\n"));
    }
}

#[test]
fn a_wrong_number_of_arguments_is_shown_at_the_call() {
    script_fails(
        "extern \"libm.so.6\" double pow(double, double);\nprint(pow(1));",
        "-e:2:7: `pow` takes 2 argument(s), and 1 came; it is declared `double (double, double)`\n\
         \x20 print(pow(1));\n\
         \x20       ^\n",
    );
}

#[test]
fn an_argument_of_the_wrong_type_is_shown_where_it_stands() {
    script_fails(
        "extern \"libc.so.6\" int abs(int);\nprint(abs(0.5));",
        "-e:2:11: argument 0 of `abs` is of the wrong type: `int` was expected, and the `double` 0.5 came; it is declared `int (int)`\n\
         \x20 print(abs(0.5));\n\
         \x20           ^\n",
    );
    script_fails(
        "extern \"libc.so.6\" char *strcpy(char*, const char*);\nstrcpy(\"to\", \"from\");",
        "-e:2:8: argument 0 of `strcpy`: a string is not written to, and the parameter is a `char*`; pass a `buffer`\n\
         \x20 strcpy(\"to\", \"from\");\n\
         \x20        ^\n",
    );
}

#[test]
fn an_address_in_an_object_that_is_pinned_no_more_is_refused() {
    script_fails(
        "extern \"libc.so.6\" char *strchr(const char*, int);\nstrchr(\"abc\", 98);",
        "-e:2:1: `strchr` gives an address inside argument 0, which can move from now on; pass it as `pin(it, fn(address) { })` gives it\n\
         \x20 strchr(\"abc\", 98);\n\
         \x20 ^\n",
    );
}

#[test]
fn an_error_under_qsort_is_shown_with_its_line_and_the_calls_it_came_through() {
    script_fails(
        "extern \"libc.so.6\" void qsort(void*, size_t, size_t, int (*)(const void*, const void*));\n\
         let compare = fn(a, b) {\n\
         \x20   return read(a, \"int\") + nil;\n\
         };\n\
         let sort = fn() { qsort(buffer(16), 4, 4, compare); };\n\
         sort();",
        "-e:3:27: `+` does not take the number 0 and nil\n\
         \x20     return read(a, \"int\") + nil;\n\
         \x20                           ^\n\
         \x20 in `compare`, called at -e:5:19\n\
         \x20 in C's `qsort`, called at -e:5:19\n\
         \x20 in `sort`, called at -e:6:1\n",
    );
}

#[test]
fn an_error_under_sqlite_is_shown_with_its_line_and_the_calls_it_came_through() {
    script_fails(
        "extern \"libsqlite3.so.0\" int sqlite3_open(const char*, struct sqlite3**);\n\
         extern \"libsqlite3.so.0\" int sqlite3_exec(struct sqlite3*, const char*, int (*)(void*, int, char**, char**), void*, char**);\n\
         let slot = buffer(8);\n\
         sqlite3_open(\":memory:\", slot);\n\
         let row = fn(data, count, values, names) {\n\
         \x20 return cstr(read(values, \"char*\")) / count;\n\
         };\n\
         sqlite3_exec(read(slot, \"void*\"), \"values (1), (2), (3)\", row, nil, nil);",
        "-e:6:38: `/` does not take a string and the number 1\n\
         \x20   return cstr(read(values, \"char*\")) / count;\n\
         \x20                                      ^\n\
         \x20 in `row`, called at -e:8:1\n\
         \x20 in C's `sqlite3_exec`, called at -e:8:1\n",
    );
}

#[test]
fn scripts_that_call_one_another_through_c_too_deep_are_ended() {
    let output = run(&[
        "-e",
        "extern \"libc.so.6\" void qsort(void*, size_t, size_t, int (*)(const void*, const void*));\n\
         let sort = fn() { qsort(buffer(8), 2, 4, fn(a, b) { sort(); return 0; }); };\n\
         sort();",
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("functions call one another more than") && errors.contains("in further calls"),
        "{errors}"
    );
}

#[test]
fn bad_arguments_end_with_two() {
    for (arguments, begins) in [
        (&[][..], "Runs a script that binds and calls C libraries.\n\nusage: "),
        (&["--nonsense"][..], "dynamic: unknown argument `--nonsense`"),
        (&["-e"][..], "dynamic: -e takes a script"),
        (&["--collect-every", "0"][..], "dynamic: --collect-every takes a number from 1"),
    ] {
        let output = run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with(begins) && output.status.code() == Some(2), "{arguments:?}: {errors}");
    }
    let missing = run(&["no-such.script"]);
    assert_eq!(missing.status.code(), Some(1));
}
