//! The rules of the house, held over the sources as text: who may use whom, which words and which orders appear where, and that what is said twice agrees.
#![expect(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files of the crate in the order of the house: a file uses those above it. Those of one directory count as one floor.
const FLOORS: &[&[&str]] = &[
    // Facade and what needs nothing.
    &["faults", "arity", "errno", "unwind", "anchor", "leaks"],
    &["sync", "foreign_value", "process"],
    &["checked", "steps"],
    &["os_thread", "patience", "stress"],
    &["timing", "occupancy"],
    // The traits, and plain data.
    &["vm"],
    &["state"],
    // The machine.
    &["arch"],
    &["control"],
    &["root_stack"],
    &["results"],
    &["handle_table"],
    &["activation"],
    &["mailbox"],
    &["record"],
    &["chain", "pin", "audit", "nesting"],
    // Coordination.
    &["registry"],
    &["watch"],
    &["safepoint"],
    &["pause"],
    &["thread", "pointers"],
    &["exit", "atfork"],
    &["attach"],
    // The boundary.
    &["transition"],
    &["mutator"],
    &["scope", "hand_over"],
    &["handshake"],
    &["post"],
    &["root"],
    &["foreign_function"],
    &["foreign_call"],
    &["leaf"],
    &["home"],
    // The front.
    &["world"],
    &["global_lock", "handle"],
    &["sample", "signals"],
    &["upcall"],
    &["dynamic"],
    &["fork"],
    &["fiber"],
    // Tools.
    &["layout", "explore"],
    &["testkit"],
    // The guide: text.
    &["guide"],
];

/// Words that say nothing, and one that belongs to other systems.
const FORBIDDEN: &[&str] = &["thunk", "manager", "helper", "util", "utils", "context"];

/// No file is longer. It is two files then.
const LONGEST: usize = 800;

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Rust files below a directory, with their text. Tests run in the package's own directory.
fn rust_files(directory: impl AsRef<Path>) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut directories = vec![directory.as_ref().to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = read(&path);
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    files
}

/// A line of code with its number, comments and the contents of literals taken out.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut number = 1;
    let mut rest = text.chars().peekable();
    let mut comment_depth = 0_u32;
    while let Some(c) = rest.next() {
        let next = rest.peek().copied();
        if c == '\n' {
            lines.push((number, core::mem::take(&mut line)));
            number += 1;
        } else if comment_depth > 0 || (c == '/' && next == Some('*')) {
            if c == '/' && next == Some('*') {
                comment_depth += 1;
                rest.next();
            } else if c == '*' && next == Some('/') {
                comment_depth -= 1;
                rest.next();
            }
        } else if c == '/' && next == Some('/') {
            while rest.peek().is_some_and(|&c| c != '\n') {
                rest.next();
            }
        } else if c == '"' {
            line.push_str("\"\"");
            loop {
                match rest.next().expect("a string ends") {
                    '\\' => number += usize::from(rest.next() == Some('\n')),
                    '\n' => number += 1,
                    '"' => break,
                    _ => {}
                }
            }
        } else if c == '\'' {
            // A character literal or a lifetime; only an escaped one or one that closes at once is a literal.
            let mut ahead = rest.clone();
            let first = ahead.next();
            if first == Some('\\') || ahead.next() == Some('\'') {
                line.push_str("' '");
                let mut escaped = false;
                for c in rest.by_ref() {
                    if c == '\'' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
            } else {
                line.push(c);
            }
        } else {
            line.push(c);
        }
    }
    lines.push((number, line));
    lines
}

/// The identifiers of a line of code, in lower case, split at underscores and capitals: `StackScanner` is two words.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for identifier in line.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
        let mut word = String::new();
        for c in identifier.chars() {
            if (c == '_' || c.is_uppercase()) && !word.is_empty() {
                words.push(core::mem::take(&mut word));
            }
            if c != '_' {
                word.extend(c.to_lowercase());
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
    }
    words
}

/// The module a file of the crate belongs to: its first component below `src`.
fn module(path: &Path) -> String {
    let below = path.strip_prefix("src").unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// The reader of sources works: it sees code, and neither comments nor strings.
#[test]
fn comments_and_literals_are_not_code() {
    let text = "a /* b /* c */ d */ e // f\n\"g \\\" \\\n h\" i 'j' '\\'' k<'l>\nm";
    let read: Vec<_> =
        code(text).into_iter().map(|(number, line)| (number, line.trim().to_owned())).collect();
    let expected = [(1, "a  e"), (3, "\"\" i ' ' ' ' k<'l>"), (4, "m")];
    assert_eq!(read, expected.map(|(number, line)| (number, line.to_owned())));
    assert_eq!(
        words("let fooBar_baz = StackScanner::new2();"),
        ["let", "foo", "bar", "baz", "stack", "scanner", "new2"]
    );
}

#[test]
fn loom_is_named_in_the_facade_alone() {
    let mut found = Vec::new();
    for (path, text) in rust_files("src") {
        for (number, line) in code(&text) {
            // `cfg(loom)` says that something is absent from the models; the crate itself is another matter.
            let line = line.replace("not(loom)", "").replace("cfg(loom)", "").replace("cfg!(loom)", "");
            let line = line.replace("all(test, )", "");
            let conditional = line.contains("cfg(") || line.contains("cfg_attr(");
            if module(&path) != "sync" && !conditional && words(&line).contains(&"loom".to_owned()) {
                found.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert_none("loom is named outside src/sync.rs", &found);
    assert!(read("src/sync.rs").contains("loom::sync::atomic"), "the rule looks for the right thing");
}

#[test]
fn assembly_stands_in_its_own_directory() {
    let mut found = Vec::new();
    let mut at_home = 0;
    for (path, text) in rust_files("src") {
        for (number, line) in code(&text) {
            if ["asm!", "naked_asm!", "global_asm!"].iter().any(|assembly| line.contains(assembly)) {
                if module(&path) == "arch" {
                    at_home += 1;
                } else {
                    found.push(format!("{}:{number}: {line}", path.display()));
                }
            }
        }
    }
    assert_none("assembly outside src/arch", &found);
    assert!(at_home > 0, "the rule looks for the right thing");
}

/// Everything else builds without C.
#[test]
fn libffi_is_used_in_its_own_directory() {
    let (mut found, mut at_home) = (Vec::new(), 0);
    for (path, text) in rust_files("src") {
        for (number, line) in code(&text) {
            if ["libffi::", "libloading::", "winnow::"].iter().any(|name| line.contains(name)) {
                if module(&path) == "dynamic" {
                    at_home += 1;
                } else {
                    found.push(format!("{}:{number}: {line}", path.display()));
                }
            }
        }
    }
    assert_none("libffi, or what comes with it, outside src/dynamic", &found);
    assert!(at_home > 0, "the rule looks for the right thing");
}

/// What each re-export of the crate's root comes from: `crate::Anchor` is `anchor`.
fn re_exports() -> BTreeMap<String, String> {
    let text: String = code(&read("src/lib.rs")).into_iter().map(|(_, line)| line).collect();
    let mut homes = BTreeMap::new();
    for export in text.split("pub use ").skip(1) {
        let export = export.split(';').next().unwrap();
        let (module, items) = export.split_once("::").expect("a path");
        for item in items.trim_matches(['{', '}']).split(',') {
            homes.insert(item.trim().to_owned(), module.trim().to_owned());
        }
    }
    homes.remove("");
    homes
}

/// The modules that a file's code names by `crate::`.
fn used_modules(text: &str, homes: &BTreeMap<String, String>) -> BTreeSet<String> {
    let code: String = code(text).into_iter().map(|(_, line)| line + "\n").collect();
    let mut used = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let names = match path.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap(),
            None => path,
        };
        let list = path.starts_with('{');
        for name in names.split(',') {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                used.insert(homes.get(&name).cloned().unwrap_or(name));
            }
            if !list {
                break;
            }
        }
    }
    used
}

#[test]
fn a_file_uses_only_files_above_it() {
    let homes = re_exports();
    let floor: BTreeMap<&str, usize> = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, modules)| modules.iter().map(move |module| (*module, floor)))
        .collect();
    let (mut found, mut seen, mut uses) = (Vec::new(), BTreeSet::new(), 0);
    for (path, text) in rust_files("src") {
        let module = module(&path);
        if module == "lib" {
            continue;
        }
        let Some(&own) = floor.get(module.as_str()) else {
            found.push(format!("{}: no floor is named for it", path.display()));
            continue;
        };
        for used in used_modules(&text, &homes) {
            uses += 1;
            match floor.get(used.as_str()) {
                _ if used == module => {}
                Some(&other) if other < own => {}
                Some(_) => found.push(format!("{} uses `{used}`, which is not above it", path.display())),
                None => found.push(format!("{} uses `{used}`, for which no floor is named", path.display())),
            }
        }
        seen.insert(module);
    }
    assert_none("a file uses what is not above it", &found);
    assert!(uses > 50, "the rule looks for the right thing");
    let missing: Vec<_> =
        floor.keys().filter(|module| !seen.contains(**module)).map(|module| (*module).to_owned()).collect();
    assert_none("a floor is named for what is not there", &missing);
}

/// A sequentially consistent *access* means little to the models and costs much; the fences are what the protocol stands on.
#[test]
fn sequential_consistency_is_for_fences() {
    let (mut found, mut fences) = (Vec::new(), 0);
    for (path, text) in rust_files("src") {
        for (number, line) in code(&text) {
            if !line.contains("SeqCst") {
                continue;
            }
            if line.contains("fence(Ordering::SeqCst)") && line.matches("SeqCst").count() == 1 {
                fences += 1;
            } else {
                found.push(format!("{}:{number}: {line}", path.display()));
            }
        }
    }
    assert_none("a sequentially consistent access", &found);
    assert!(fences > 0, "the rule looks for the right thing");
}

/// The value of `key = "value"` in the package's own section.
fn package(key: &str) -> String {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[package]").nth(1).unwrap().split("\n[").next().unwrap();
    let line = section.lines().find(|line| line.starts_with(&format!("{key} = "))).expect(key);
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn versions_agree_wherever_they_are_said() {
    let (version, rust) = (package("version"), package("rust-version"));
    assert_eq!(
        (version.as_str(), rust.as_str()),
        (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_RUST_VERSION"))
    );
    let (readme, changelog) = (read("README.md"), read("CHANGELOG.md"));
    assert!(changelog.contains("\n## [Unreleased]\n"), "the changelog has room for the next change");
    assert!(changelog.contains(&version), "the changelog says which version this is");
    // Wherever a minimum version of Rust is named, it is this one.
    let mut named = 0;
    for (file, text) in [("README.md", &readme), ("CHANGELOG.md", &changelog)] {
        for mention in text.split("Rust 1.").skip(1) {
            let minor: String = mention.chars().take_while(char::is_ascii_digit).collect();
            assert_eq!(format!("1.{minor}"), rust, "{file}");
            named += 1;
        }
    }
    assert!(readme.contains(&format!("Rust {rust}")), "README.md says which Rust is needed");
    assert!(named >= 1);
    // And wherever the crate is shown as a dependency, with its version.
    for line in readme.lines().filter(|line| line.trim_start().starts_with("reentry = ")) {
        let (major, minor) = version.rsplit_once('.').map(|(head, _)| head.split_once('.').unwrap()).unwrap();
        assert!(line.contains(&format!("{major}.{minor}")), "{line}");
    }
}

#[test]
fn every_feature_is_documented_in_the_readme() {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[features]").nth(1).unwrap().split("\n[").next().unwrap();
    let features: Vec<_> = section
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(feature, _)| feature.trim().to_owned())
        .filter(|feature| feature != "default")
        .collect();
    assert!(features.contains(&"testkit".to_owned()), "the rule looks for the right thing: {features:?}");
    let readme = read("README.md");
    let undocumented: Vec<_> =
        features.into_iter().filter(|feature| !readme.contains(&format!("| `{feature}` |"))).collect();
    assert_none("not in the README's table of features", &undocumented);
}

#[test]
fn no_file_needs_a_table_of_contents() {
    let files = rust_files("src");
    let long: Vec<_> = files
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert_none("too long", &long);
}

#[test]
fn the_vocabulary_is_kept() {
    let mut found = Vec::new();
    for (path, text) in rust_files("src") {
        for (number, line) in code(&text) {
            for word in words(&line).into_iter().filter(|word| FORBIDDEN.contains(&word.as_str())) {
                found.push(format!("{}:{number}: `{word}`", path.display()));
            }
        }
    }
    assert_none("a word that says nothing", &found);
    assert!(words("fn crossing_context(): Util").iter().any(|word| FORBIDDEN.contains(&word.as_str())));
}

/// The rows of the tables of misuse: the cells of each, heads and rules left out.
fn rows_of_misuse() -> Vec<Vec<String>> {
    let text = read("src/guide/misuse.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| misuse |"));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// What stands in backticks.
fn code_spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Rust sources as one text, in which a string that goes on in the next line is in one piece.
fn in_one_piece(files: &[(PathBuf, String)]) -> String {
    let mut text = String::new();
    for line in files.iter().flat_map(|(_, text)| text.lines()) {
        match line.trim().strip_suffix('\\') {
            Some(begun) => text.push_str(begun),
            None => {
                text.push_str(line.trim());
                text.push('\n');
            }
        }
    }
    text
}

/// The file of a test that the table names as `file::test`, and what must stand in it.
fn place_of_test(name: &str) -> Option<(PathBuf, String)> {
    let (file, test) = name.split_once("::")?;
    if file == "ui" {
        return Some((format!("tests/ui/{test}.rs").into(), "fn main()".to_owned()));
    }
    let test = test.rsplit("::").next()?;
    let paths =
        [format!("tests/all/{file}.rs"), format!("tests/explore/{file}.rs"), format!("tests/{file}.rs")];
    let path = paths.iter().map(PathBuf::from).find(|path| path.exists())?;
    Some((path, format!("fn {test}()")))
}

/// Says whether `text` has the test `function`: with the attribute above it, behind other attributes at most.
fn has_test(text: &str, function: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.starts_with(function)) else { return false };
    lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
}

/// Whoever looks a mistake up finds what is said of it in so many words, and a test that says it.
#[test]
fn each_row_of_the_tables_of_misuse_has_a_test_and_says_what_the_sources_say() {
    let sources = in_one_piece(&rust_files("src"));
    let rows = rows_of_misuse();
    let (mut found, mut tests, mut fragments) = (Vec::new(), 0, 0);
    for row in &rows {
        let [misuse, seen, builds, named] = &row[..] else {
            found.push(format!("a row of {} cells: {row:?}", row.len()));
            continue;
        };
        if misuse.is_empty() || seen.is_empty() || builds.is_empty() || !named.contains("::") {
            found.push(format!("a row with nothing in a cell, or no test: {misuse}"));
        }
        let mut said = sources.clone();
        for name in code_spans(named) {
            let Some((path, function)) = place_of_test(name) else {
                found.push(format!("`{name}` is in no file of tests"));
                continue;
            };
            tests += 1;
            let text = fs::read_to_string(&path).unwrap_or_default();
            let program = name.starts_with("ui::");
            let there = if program { text.contains(&function) } else { has_test(&text, &function) };
            if !there {
                found.push(format!("`{name}` is no test of {}", path.display()));
            }
            if program {
                said.push_str(&fs::read_to_string(path.with_extension("stderr")).unwrap_or_default());
            } else if seen.starts_with("the standard library") {
                // Its words are in no source of ours but the test that expects them.
                said.push_str(&text);
            }
        }
        for fragment in code_spans(seen).into_iter().flat_map(|message| message.split('…')) {
            // The names of error variants stand in the sources apart.
            for part in fragment.split("::").map(str::trim).filter(|part| part.len() > 3) {
                fragments += 1;
                if !said.contains(part) {
                    found.push(format!("nothing says `{part}`: {misuse}"));
                }
            }
        }
    }
    assert_none("the tables of misuse", &found);
    assert!(
        rows.len() > 80 && tests > 120 && fragments > 100,
        "{} rows, {tests} tests, {fragments}",
        rows.len()
    );
}

/// The variants of an enum: the words that begin a line of its braces, one level in.
fn variants(text: &str, name: &str) -> Vec<String> {
    let Some((_, body)) = text.split_once(&format!("pub enum {name}")) else { return Vec::new() };
    let body = body.lines().skip(1).take_while(|line| *line != "}");
    body.filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect()
}

/// What is new has a row, or there is no table of *every* misuse.
#[test]
fn the_tables_of_misuse_leave_nothing_out() {
    let table = read("src/guide/misuse.md");
    let mut expected = Vec::new();
    for (path, _) in rust_files("tests/ui") {
        let program = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.parent().is_some_and(|parent| parent.ends_with("ui")) && program != "correct" {
            expected.push(format!("`ui::{program}`"));
        }
    }
    let programs = expected.len();
    let aborts = read("tests/aborts.rs");
    for (before, function) in aborts.lines().zip(aborts.lines().skip(1)) {
        let name = function.trim().strip_prefix("fn ").and_then(|rest| rest.strip_suffix("() {"));
        if let Some(name) = name.filter(|_| before.trim().starts_with("#[")) {
            // Those that show that nothing ends without a reason.
            if !name.ends_with("does_not_abort") && !name.ends_with("is_never_found_damaged") {
                expected.push(format!("::{name}`"));
            }
        }
    }
    let named = expected.len();
    for (path, text) in rust_files("src") {
        let errors = text.split("thiserror::Error)]").skip(1).filter_map(|rest| {
            let line = rest.lines().find(|line| line.starts_with("pub "))?;
            Some(line.split([' ', ';', '<', '{']).nth(2)?.trim().to_owned())
        });
        let reports = (path == Path::new("src/vm/report.rs")).then(|| "Report".to_owned());
        for name in errors.chain(reports) {
            if module(&path) == "testkit" {
                continue;
            }
            let variants = variants(&text, &name);
            expected.extend(variants.iter().map(|variant| variant.to_owned()));
            if variants.is_empty() {
                expected.push(name);
            }
        }
    }
    assert!(programs > 30 && named - programs > 35 && expected.len() - named > 40, "{expected:?}");
    // A variant is named by itself or behind its type.
    let names: BTreeSet<_> = code_spans(&table).into_iter().flat_map(|span| span.split("::")).collect();
    let missing: Vec<_> = expected
        .into_iter()
        .filter(
            |name| if name.contains('`') { !table.contains(name) } else { !names.contains(name.as_str()) },
        )
        .collect();
    assert_none("not in the tables of misuse", &missing);
}

/// Each exhibit has its row, and each row its test.
#[test]
fn the_museums_table_is_the_museum() {
    let (table, rooms) = (read("src/guide/museum.md"), read("tests/museum/rows.rs"));
    let exhibits: Vec<_> = rooms
        .lines()
        .zip(rooms.lines().skip(1))
        .filter(|(attribute, _)| *attribute == "#[test]")
        .filter_map(|(_, line)| line.strip_prefix("fn ")?.strip_suffix("() {"))
        .collect();
    assert!(exhibits.len() > 10, "{exhibits:?}");
    let rows: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.ends_with("` |"))
        .filter_map(|row| code_spans(row).last().map(|test| (*test).to_owned()))
        .collect();
    let (mut exhibits, mut rows): (Vec<String>, _) =
        (exhibits.into_iter().map(str::to_owned).collect(), rows);
    exhibits.sort_unstable();
    rows.sort_unstable();
    assert_eq!(exhibits, rows);
}

/// A figure is measured once, and copied.
#[test]
fn the_figures_of_the_guide_are_those_of_the_benchmarks() {
    let measured = read("benches/README.md");
    let times: BTreeMap<&str, &str> = measured
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split_once('`'))
        .filter_map(|(id, rest)| Some((id, rest.split('|').nth(1)?.trim())))
        .collect();
    let (mut found, mut figures) = (Vec::new(), 0);
    let chapter = read("src/guide/references.md");
    for row in chapter.lines().filter(|row| row.starts_with("| ") && row.contains(" ns |")) {
        let cells: Vec<_> = row.split(" | ").collect();
        let (id, time) = (code_spans(cells[1])[0], cells[2]);
        figures += 1;
        if times.get(id) != Some(&time) {
            found.push(format!("`{id}`: {time} in the guide, {:?} measured", times.get(id)));
        }
    }
    assert_none("a figure of the guide is not that of benches/README.md", &found);
    assert!(figures >= 10, "the rule looks for the right thing: {figures}");
}

/// Whoever copies the chapter's model has one that runs: the block is the file, and the gate runs that.
#[test]
fn the_model_in_the_guide_is_the_one_that_is_run() {
    let (chapter, model) = (read("src/guide/models.md"), read("tests/loom_guide.rs"));
    let blocks: Vec<_> = chapter.split("```rust,ignore\n").skip(1).collect();
    assert_eq!(blocks.len(), 1, "what is not compiled here is this file");
    assert_eq!(blocks[0].split("```").next(), Some(model.as_str()), "the chapter shows tests/loom_guide.rs");
}

/// The chapter cannot link to what is there under `cfg(loom)` alone.
#[test]
fn the_guide_names_all_of_the_kit_for_models() {
    let (chapter, kit) = (read("src/guide/models.md"), read("src/testkit/model.rs"));
    let (mut found, mut items) = (Vec::new(), 0);
    for line in kit.lines() {
        let item = ["pub fn ", "pub struct "].iter().find_map(|begun| line.strip_prefix(begun));
        let Some(item) = item else { continue };
        let name: String = item.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        items += 1;
        if !chapter.contains(&format!("`{name}`")) && !chapter.contains(&format!("`{name}(")) {
            found.push(name);
        }
    }
    for message in kit.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let message = message.split('"').nth(1).unwrap();
        items += 1;
        if !chapter.contains(&format!("`{message}`")) {
            found.push(message.to_owned());
        }
    }
    assert_none("not in src/guide/models.md", &found);
    assert!(items >= 12, "the rule looks for the right thing: {items}");
}

/// Whoever follows the chapter has a program that runs: each piece is the example's own text, in its order, and from the second step on nothing is left out.
#[test]
fn the_pieces_of_the_tiny_vm_in_the_guide_are_the_example() {
    let (chapter, example) = (read("src/guide/start.md"), read("examples/tiny_vm/main.rs"));
    let (mut at, mut shown) = (0, String::new());
    for block in chapter.split("```rust,ignore\n").skip(1) {
        let piece = block.split("```").next().unwrap();
        let found =
            example[at..].find(piece).unwrap_or_else(|| panic!("not in the example, or not here:\n{piece}"));
        at += found + piece.len();
        shown.push_str(piece);
    }
    let (_, steps) = example.split_once("// Step 2: ").expect("the steps have numbers");
    for step in 3..=6 {
        assert!(steps.contains(&format!("// Step {step}: ")), "step {step}");
    }
    let (_, shown) = shown.split_once("// Step 2: ").expect("the chapter shows the steps");
    let lines =
        |text: &str| text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(shown), lines(steps), "the chapter leaves something out");
}

/// GitHub and crates.io know no paths of Rust, show lines that rustdoc hides, and cut what is wide.
#[test]
fn the_readme_renders_where_it_is_read() {
    let readme = read("README.md");
    let (mut found, mut links, mut code) = (Vec::new(), 0, 0);
    let mut fence = None;
    for (number, line) in (1..).zip(readme.lines()) {
        if let Some(opened) = line.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(opened) };
            continue;
        }
        if let Some(language) = fence {
            code += 1;
            if language == "rust" && (line == "#" || line.starts_with("# ")) {
                found.push(format!("{number}: a hidden line: {line}"));
            }
            if line.chars().count() > if language == "rust" { 86 } else { 100 } {
                found.push(format!("{number}: wider than the page: {line}"));
            }
            continue;
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            links += 1;
            if !target.starts_with("https://") {
                found.push(format!("{number}: a link that is dead outside the documentation: {target}"));
            }
        }
        if line.contains("[`") && !line.contains("`](") {
            found.push(format!("{number}: a link to a path of Rust: {line}"));
        }
        if !line.starts_with('|') && line.chars().count() > 100 {
            found.push(format!("{number}: longer than 100 columns: {line}"));
        }
    }
    assert_none("README.md", &found);
    assert!(
        links > 5 && code > 20,
        "the rule looks for the right thing: {links} links, {code} lines of code"
    );
    assert!(read("src/lib.rs").contains("#[cfg(doctest)]\n#[doc = include_str!(\"../README.md\")]"));
}
