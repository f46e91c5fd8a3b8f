//! Writes the C side of the tests of dynamic calls: callees and callers for every scalar, for many structs, and for arguments in many orders.
//!
//! A callee writes what it got to the thread's memory and returns what it finds there; a caller does the reverse with a function it is given. What the tests need to know stands in three tables, which C exports:
//! prototypes and declarations as text, addresses, and what C says of sizes and offsets.

use core::fmt::Write;
use std::collections::BTreeSet;

/// Another seed gives other structs and other orders of arguments.
const SEED: u64 = 0x0AB1_5EED;

/// C's scalars, and the sizes they have where a word has 64 bits. The sizes bound the structs, and nothing else depends on them.
const SCALARS: [(&str, usize); 31] = [
    ("_Bool", 1),
    ("char", 1),
    ("signed char", 1),
    ("unsigned char", 1),
    ("short", 2),
    ("unsigned short", 2),
    ("int", 4),
    ("unsigned int", 4),
    ("long", 8),
    ("unsigned long", 8),
    ("long long", 8),
    ("unsigned long long", 8),
    ("int8_t", 1),
    ("uint8_t", 1),
    ("int16_t", 2),
    ("uint16_t", 2),
    ("int32_t", 4),
    ("uint32_t", 4),
    ("int64_t", 8),
    ("uint64_t", 8),
    ("size_t", 8),
    ("ssize_t", 8),
    ("ptrdiff_t", 8),
    ("intptr_t", 8),
    ("uintptr_t", 8),
    ("intmax_t", 8),
    ("uintmax_t", 8),
    ("wchar_t", 4),
    ("float", 4),
    ("double", 8),
    ("long double", 16),
];

/// Other types that travel as scalars; `@` stands where the name goes.
const OTHERS: [(&str, usize); 6] = [
    ("void *@", 8),
    ("const char *@", 8),
    ("double **@", 8),
    ("enum colour @", 4),
    ("enum sign @", 4),
    ("int (*@)(const void *, double)", 8),
];

const ENUMS: [&str; 2] = ["enum colour { RED, GREEN = 5, BLUE };", "enum sign { MINUS = -1, ZERO, PLUS };"];

/// The largest struct, in bytes.
const LARGEST: usize = 64;

/// How many structs there are.
const STRUCTS: usize = 260;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn many<T: Clone>(&mut self, count: usize, choices: &[T]) -> Vec<T> {
        (0..count).map(|_| self.of(choices)).collect()
    }
}

/// A C type.
#[derive(Clone)]
struct Type {
    /// A declaration, with `@` where the name goes.
    text: String,
    size: usize,
    alignment: usize,
    /// The scalars in it, as what C writes behind the name of a variable: `.f0[2]`; nothing for a scalar.
    scalars: Vec<String>,
    tag: Option<String>,
}

impl Type {
    fn scalar(text: &str, size: usize) -> Self {
        let text = if text.contains('@') { text.to_owned() } else { format!("{text} @") };
        Self { text, size, alignment: size, scalars: vec![String::new()], tag: None }
    }

    fn array(&self, count: usize) -> Self {
        let text = self.text.replace('@', &format!("@[{count}]"));
        let scalars =
            (0..count).flat_map(|index| self.scalars.iter().map(move |scalar| format!("[{index}]{scalar}")));
        let (size, scalars) = (count * self.size, scalars.collect());
        Self { text, size, scalars, ..self.clone() }
    }

    fn declare(&self, name: &str) -> String {
        self.text.replace('@', name)
    }

    fn is_function_pointer(&self) -> bool {
        self.text.contains("(*")
    }

    /// A statement that moves a variable of this type: `SEE` or `SAY`.
    fn moving(&self, verb: &str, name: &str) -> String {
        let lower = verb.to_lowercase();
        let pointer = if verb == "SEE" { "seen" } else { "said" };
        match &self.tag {
            Some(tag) => format!("{pointer} = {lower}_{tag}({pointer}, &{name});"),
            None => format!("{verb}({name});"),
        }
    }
}

/// The scalar of this name.
///
/// # Panics
///
/// If there is none.
fn named<'t>(scalars: &'t [Type], name: &str) -> &'t Type {
    scalars.iter().find(|ty| ty.text == format!("{name} @")).expect("a scalar")
}

/// A function: a prototype, and types for its `...`.
struct Function {
    result: Option<Type>,
    parameters: Vec<Type>,
    extras: Option<Vec<Type>>,
    win64: bool,
}

struct Generator {
    random: Random,
    source: String,
    /// The entries of the tables.
    functions: Vec<String>,
    structs: Vec<String>,
    /// The bodies of the structs there are.
    shapes: BTreeSet<String>,
}

impl Generator {
    /// Declares the struct of these fields, unless it is too large or there is one like it.
    fn structure(&mut self, fields: &[Type]) -> Option<Type> {
        let (mut size, mut alignment) = (0_usize, 1);
        let (mut body, mut scalars) = (String::new(), Vec::new());
        for (number, field) in fields.iter().enumerate() {
            size = size.next_multiple_of(field.alignment) + field.size;
            alignment = alignment.max(field.alignment);
            write!(body, " {};", field.declare(&format!("f{number}"))).unwrap();
            scalars.extend(field.scalars.iter().map(|scalar| format!(".f{number}{scalar}")));
        }
        size = size.next_multiple_of(alignment);
        if size > LARGEST || !self.shapes.insert(body.clone()) {
            return None;
        }
        let tag = format!("s{}", self.structs.len());
        let declaration = format!("struct {tag} {{{body} }};");
        let each = |verb: &str| -> String {
            scalars.iter().map(|scalar| format!("    {verb}((*value){scalar});\n")).collect()
        };
        let (see, say) = (each("SEE"), each("SAY"));
        let offsets: Vec<_> =
            (0..fields.len()).map(|number| format!("offsetof(struct {tag}, f{number})")).collect();
        write!(
            self.source,
            "{declaration}\n\
             static unsigned char *see_{tag}(unsigned char *seen, const struct {tag} *value) {{\n{see}    return seen;\n}}\n\
             static const unsigned char *say_{tag}(const unsigned char *said, struct {tag} *value) {{\n{say}    return said;\n}}\n\
             static const size_t offsets_{tag}[] = {{{}}};\n",
            offsets.join(", ")
        )
        .unwrap();
        self.structs.push(format!(
            "{{{declaration:?}, sizeof(struct {tag}), _Alignof(struct {tag}), {}, offsets_{tag}}}",
            fields.len()
        ));
        let text = format!("struct {tag} @");
        Some(Type { text, size, alignment, scalars, tag: Some(tag) })
    }

    /// Writes a function, and one that calls a function of its type.
    fn function(&mut self, function: &Function) {
        let name = format!("foreign_abi_{}", self.functions.len());
        let named = function.parameters.iter().enumerate();
        let mut list: Vec<_> = named.clone().map(|(n, ty)| ty.declare(&format!("a{n}"))).collect();
        let attribute = if function.win64 { "__attribute__((ms_abi)) " } else { "" };
        let prototype = |list: &[String]| {
            let list = if list.is_empty() { "void".to_owned() } else { list.join(", ") };
            let declarator = format!("{name}({list})");
            let void = format!("void {declarator}");
            attribute.to_owned() + &function.result.as_ref().map_or(void, |ty| ty.declare(&declarator))
        };
        list.extend(function.extras.iter().map(|_| "...".to_owned()));
        let declared = prototype(&list);
        list.extend(function.extras.iter().flatten().map(|ty| ty.declare("").trim().to_owned()));
        let call = prototype(&list);

        let mut callee = String::new();
        for (number, ty) in named.clone() {
            writeln!(callee, "    {}", ty.moving("SEE", &format!("a{number}"))).unwrap();
        }
        if let Some(extras) = &function.extras {
            let ms = if function.win64 { "ms_" } else { "" };
            let last = function.parameters.len() - 1;
            writeln!(callee, "    __builtin_{ms}va_list list;\n    __builtin_{ms}va_start(list, a{last});")
                .unwrap();
            for (number, ty) in extras.iter().enumerate() {
                let (name, ty_name) = (format!("e{number}"), ty.declare(""));
                writeln!(callee, "    {} = va_arg(list, {});", ty.declare(&name), ty_name.trim()).unwrap();
                writeln!(callee, "    {}", ty.moving("SEE", &name)).unwrap();
            }
            writeln!(callee, "    __builtin_{ms}va_end(list);").unwrap();
        }
        let result = function.result.as_ref().map_or(String::new(), |ty| {
            let (declaration, say) = (ty.declare("result"), ty.moving("SAY", "result"));
            format!("    {declaration};\n    const unsigned char *said = memory->said;\n    {say}\n    return result;\n")
        });
        write!(
            self.source,
            "static {declared} {{\n    struct abi_memory *memory = foreign_abi_memory();\n    unsigned char *seen = memory->seen;\n\
             {callee}    memory->seen_length = (size_t)(seen - memory->seen);\n{result}}}\n"
        )
        .unwrap();
        let caller = if function.extras.is_some() { "0".to_owned() } else { self.caller(function, &name) };
        self.functions.push(format!("{{{declared:?}, {call:?}, (void (*)(void)){name}, {caller}}}"));
    }

    /// Writes the caller of a function, and gives its name.
    fn caller(&mut self, function: &Function, name: &str) -> String {
        let (mut say, mut arguments) = (String::new(), Vec::new());
        for (number, ty) in function.parameters.iter().enumerate() {
            let argument = format!("a{number}");
            writeln!(say, "    {};\n    {}", ty.declare(&argument), ty.moving("SAY", &argument)).unwrap();
            arguments.push(argument);
        }
        let call = format!("((__typeof__({name}) *)callee)({})", arguments.join(", "));
        let (call, see) = match &function.result {
            Some(ty) => (format!("{} = {call}", ty.declare("result")), ty.moving("SEE", "result")),
            None => (call, String::new()),
        };
        write!(
            self.source,
            "static void call_{name}(void (*callee)(void)) {{\n    struct abi_memory *memory = foreign_abi_memory();\n    \
             const unsigned char *said = memory->said;\n{say}    (void)said;\n    {call};\n    \
             unsigned char *seen = memory->seen;\n    {see}\n    memory->seen_length = (size_t)(seen - memory->seen);\n}}\n"
        )
        .unwrap();
        format!("call_{name}")
    }

    /// The structs: those that a rule has a case for, and random ones.
    fn all_structs(&mut self, scalars: &[Type], others: &[Type]) -> Vec<Type> {
        let find = |name| named(scalars, name);
        let [char, short, int, long] = ["char", "short", "int", "long"].map(find);
        let [float, double, long_double] = ["float", "double", "long double"].map(find);
        let mut shapes: Vec<Vec<Type>> = scalars.iter().chain(others).map(|ty| vec![ty.clone()]).collect();
        // Odd sizes, and each size up to what travels in two registers and beyond.
        shapes.extend(
            (2..=20).chain([23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64]).map(|n| vec![char.array(n)]),
        );
        shapes.extend((2..=9).map(|n| vec![short.array(n)]));
        shapes.push(vec![char.array(3), short.clone()]);
        shapes.push(vec![short.clone(), char.array(5)]);
        shapes.push(vec![int.clone(), char.clone()]);
        // Homogeneous aggregates: as fields, and as an array.
        for ty in [float, double, long_double] {
            for n in (1..=6).chain([8, 16]) {
                shapes.push(vec![ty.clone(); n]);
                shapes.push(vec![ty.array(n)]);
            }
        }
        // Both sorts of registers, and both in one eightbyte.
        for whole in [char, short, int, long] {
            for real in [float, double] {
                for fields in [[whole, real], [real, whole]] {
                    shapes.push(fields.map(Type::clone).to_vec());
                    shapes.push([fields[0], fields[0], fields[1]].map(Type::clone).to_vec());
                    shapes.push([fields[0], fields[1], fields[1]].map(Type::clone).to_vec());
                }
            }
        }
        let mut structs: Vec<Type> = shapes.iter().filter_map(|fields| self.structure(fields)).collect();
        let plain: Vec<Type> = scalars.iter().chain(others).cloned().collect();
        let small = [char, short, int, float].map(Type::clone);
        while structs.len() < STRUCTS {
            let choices = [&plain[..], &structs[..], &small[..], &structs[structs.len() / 2..]];
            let fields: Vec<Type> = (0..1 + self.random.below(5))
                .map(|_| {
                    let choices = self.random.of(&choices);
                    let field = self.random.of(choices);
                    let again = self.random.below(3) == 0 && !field.is_function_pointer();
                    if again { field.array(1 + self.random.below(4)) } else { field }
                })
                .collect();
            structs.extend(self.structure(&fields));
        }
        structs
    }

    fn all_functions(&mut self, scalars: &[Type], structs: &[Type], win64: bool) {
        let results: Vec<Type> = scalars.iter().filter(|ty| !ty.is_function_pointer()).cloned().collect();
        let plain = |result, parameters| Function { result, parameters, extras: None, win64 };
        // Of each scalar alone.
        for ty in scalars {
            let result = (!ty.is_function_pointer()).then(|| ty.clone());
            self.function(&plain(result, vec![ty.clone()]));
        }
        // Of one type, and in mixed orders.
        for count in 0..=20 {
            for turn in 0..5 {
                let ty = scalars[(5 * count + turn) % scalars.len()].clone();
                for parameters in [vec![ty; count], self.random.many(count, scalars)] {
                    let result = (turn > 0).then(|| self.random.of(&results));
                    self.function(&plain(result, parameters));
                }
            }
            // What fills one sort of registers, or both.
            let [int, float, double] = ["int", "float", "double"].map(|name| named(scalars, name).clone());
            let both = self.random.many(count, &[int.clone(), float.clone(), double.clone(), double.clone()]);
            for parameters in [vec![int; count], vec![float; count], vec![double; count], both] {
                let result = Some(self.random.of(&results));
                self.function(&plain(result, parameters));
            }
        }
        // Each struct alone, between scalars, and beside another.
        for ty in structs {
            self.function(&plain(Some(ty.clone()), vec![ty.clone()]));
            let (before, after) = (self.random.below(12), self.random.below(4));
            let mut parameters = self.random.many(before, scalars);
            parameters.push(ty.clone());
            parameters.extend(self.random.many(after, scalars));
            self.function(&plain(Some(ty.clone()), parameters.clone()));
            parameters.extend([self.random.of(structs), ty.clone()]);
            let result = Some(self.random.of(&results));
            self.function(&plain(result, parameters));
        }
        // Variadic ones. The last parameter is of a type that C does not promote.
        let promoted: Vec<Type> = scalars
            .iter()
            .filter(|ty| {
                ["int @", "unsigned int @", "long @", "unsigned long @", "long long @", "double @", "void *@"]
                    .contains(&&*ty.text)
            })
            .cloned()
            .collect();
        for count in 0..=12 {
            for turn in 0..4 {
                let before = self.random.below(if turn == 0 { 1 } else { 5 });
                let mut parameters = self.random.many(before, scalars);
                parameters.push(self.random.of(&promoted));
                let mut extras = self.random.many(count, &promoted);
                // What has no type of its own at run time. GCC passes these in the way of Microsoft's convention, and then does not look for them there.
                if turn == 3 && !win64 {
                    extras.push(self.random.of(structs));
                    extras.push(named(scalars, "long double").clone());
                    extras.push(self.random.of(&promoted));
                }
                let result = Some(self.random.of(if turn == 1 { structs } else { &results }));
                self.function(&Function { result, parameters, extras: Some(extras), win64 });
            }
        }
    }
}

/// The whole C file; with functions of Microsoft's convention too, if the target has it.
pub(crate) fn generate(win64: bool) -> String {
    let mut generator = Generator {
        random: Random(SEED),
        source: String::from("/* Generated by abi.rs. */\n#include \"abi.h\"\n"),
        functions: Vec::new(),
        structs: Vec::new(),
        shapes: BTreeSet::new(),
    };
    generator.source += "static _Thread_local struct abi_memory memory_of_thread;\n\
                         struct abi_memory *foreign_abi_memory(void) { return &memory_of_thread; }\n";
    for declaration in ENUMS {
        writeln!(generator.source, "{declaration}").unwrap();
    }
    let scalars: Vec<Type> = SCALARS.iter().map(|(name, size)| Type::scalar(name, *size)).collect();
    let others: Vec<Type> = OTHERS.iter().map(|(text, size)| Type::scalar(text, *size)).collect();
    let structs = generator.all_structs(&scalars, &others);
    let scalars = [scalars, others].concat();
    generator.all_functions(&scalars, &structs, false);
    if win64 {
        let some: Vec<Type> = structs.iter().step_by(3).cloned().collect();
        generator.all_functions(&scalars, &some, true);
    }
    let of_scalar = |name: &str| {
        let negative = if name == "_Bool" { "0".to_owned() } else { format!("({name})-1 < ({name})1") };
        format!("{{{name:?}, sizeof({name}), _Alignof({name}), {negative}}}")
    };
    let tables = [
        ("function", generator.functions),
        ("struct", generator.structs),
        ("scalar", SCALARS.iter().map(|(name, _)| of_scalar(name)).collect()),
        ("enum", ENUMS.iter().map(|declaration| format!("{declaration:?}")).collect()),
    ];
    let mut source = generator.source;
    for (name, entries) in tables {
        let ty = if name == "enum" { "char *const".to_owned() } else { format!("struct abi_{name}") };
        let (count, entries) = (entries.len(), entries.join(",\n    "));
        write!(
            source,
            "const {ty} foreign_abi_{name}s[] = {{\n    {entries}\n}};\n\
             const size_t foreign_abi_{name}_count = {count};\n"
        )
        .unwrap();
    }
    source
}
