//! Dynamic calls and closures against C: what one side passes is what the other gets, byte for byte, for every scalar, for hundreds of structs and for arguments in many orders.
//!
//! C's side is generated (`tests/foreign/abi.rs`) and compiled by the C compiler, which is the oracle. Values are compared field by field: padding is nobody's.

use crate::emulator::EMULATED;
use proptest::collection::vec;
use proptest::prelude::{Just, any};
use proptest::test_runner::{Config, TestRunner};
use reentry::dynamic::{
    Abi, Call, Closure, Function, Invocation, Library, Scalar, Signature, Type, Types, Value,
};
use reentry::testkit::TestVm;
use reentry::{Mutator, World};
use reentry_foreign::abi;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Where random values begin; a failure says it.
const SEED: u64 = 0xD15C_0B0E;

/// How often each function is called, with other values each time. Checked mode looks at no value but pointers, so the optimised suite has tried the many before it runs.
const ROUNDS: usize = match (EMULATED, cfg!(any(debug_assertions, feature = "checked"))) {
    (true, _) => 2,
    (false, true) => 8,
    (false, false) => 64,
};

/// SplitMix64.
struct Random {
    state: u64,
    /// Whether no NaN is a signalling one.
    quiet: bool,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed, quiet: false }
    }

    /// Prepares for a function of a convention.
    fn prepare(&mut self, signature: &Signature) {
        // GCC moves some `float`s of this convention by way of x87, which makes a signalling NaN a quiet one. C may do that.
        self.quiet = signature.abi() == Abi::Win64;
    }

    fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.word() % choices.len() as u64).unwrap()]
    }

    /// Any value of a scalar, extreme ones above all.
    fn scalar(&mut self, scalar: &Leaf) -> Vec<u8> {
        let any = self.word();
        match &scalar.ty {
            Type::Scalar(Scalar::Bool) => vec![(any % 2) as u8],
            Type::Scalar(Scalar::Float) => {
                let bits = self.of(&FLOATS).unwrap_or(any as u32);
                let quiet = self.quiet && f32::from_bits(bits).is_nan();
                (bits | u32::from(quiet) << 22).to_ne_bytes().to_vec()
            }
            Type::Scalar(Scalar::Double) => {
                let bits = self.of(&DOUBLES).unwrap_or(any);
                let quiet = self.quiet && f64::from_bits(bits).is_nan();
                (bits | u64::from(quiet) << 51).to_ne_bytes().to_vec()
            }
            Type::Scalar(Scalar::LongDouble) => {
                let (fraction, exponent) = (self.of(&DOUBLES).unwrap_or(any), self.word());
                let bytes = [fraction.to_ne_bytes(), exponent.to_ne_bytes()].concat();
                bytes[..scalar.size].to_vec()
            }
            _ => {
                let bits = 8 * scalar.size;
                let top = 1_u64 << (bits - 1);
                let choices = [any, any, any, 0, 1, 0x81, u64::MAX, top, top - 1, top | 1, any | 1];
                self.of(&choices).to_ne_bytes()[..scalar.size].to_vec()
            }
        }
    }
}

/// Zeros, infinities, quiet and signalling NaNs with payloads, subnormals, the extremes; any bits.
const FLOATS: [Option<u32>; 13] = [
    None,
    None,
    Some(0),
    Some(1 << 31),
    Some(0x3F80_0000),
    Some(0x7F80_0000),
    Some(0xFF80_0000),
    Some(0x7FC1_2345),
    Some(0xFF81_2345),
    Some(0x7F80_0001),
    Some(1),
    Some(0x807F_FFFF),
    Some(0x7F7F_FFFF),
];
const DOUBLES: [Option<u64>; 13] = [
    None,
    None,
    Some(0),
    Some(1 << 63),
    Some(0x3FF0_0000_0000_0000),
    Some(0x7FF0_0000_0000_0000),
    Some(0xFFF0_0000_0000_0000),
    Some(0x7FF8_1234_5678_9ABC),
    Some(0xFFF0_1234_5678_9ABC),
    Some(0x7FF0_0000_0000_0001),
    Some(1),
    Some(0x800F_FFFF_FFFF_FFFF),
    Some(0x7FEF_FFFF_FFFF_FFFF),
];

/// The bytes of a `long double` that hold its value.
const LONG_DOUBLE: usize = if cfg!(any(target_arch = "x86_64", target_arch = "x86")) { 10 } else { 16 };

/// A scalar in a value.
struct Leaf {
    offset: usize,
    size: usize,
    ty: Type,
}

/// The scalars of a type, in order.
fn leaves(ty: &Type) -> Vec<Leaf> {
    fn add(ty: &Type, offset: usize, to: &mut Vec<Leaf>) {
        match ty {
            Type::Struct(ty) => {
                ty.fields().iter().for_each(|field| add(field.ty(), offset + field.offset(), to))
            }
            Type::Array(ty, count) => (0..*count).for_each(|index| add(ty, offset + index * ty.size(), to)),
            Type::Void => {}
            Type::Scalar(Scalar::LongDouble) => {
                to.push(Leaf { offset, size: LONG_DOUBLE.min(ty.size()), ty: ty.clone() });
            }
            ty => to.push(Leaf { offset, size: ty.size(), ty: ty.clone() }),
        }
    }
    let mut leaves = Vec::new();
    add(ty, 0, &mut leaves);
    leaves
}

/// A type, and the scalars in it.
struct Shape {
    ty: Type,
    leaves: Vec<Leaf>,
}

impl Shape {
    fn new(ty: &Type) -> Self {
        Self { ty: ty.clone(), leaves: leaves(ty) }
    }

    /// Any value of the type as it lies in memory, with any padding.
    fn random(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..self.ty.size()).map(|_| random.word() as u8).collect();
        for leaf in &self.leaves {
            bytes[leaf.offset..][..leaf.size].copy_from_slice(&random.scalar(leaf));
        }
        bytes
    }

    /// A value in memory without its padding.
    fn pack(&self, bytes: &[u8]) -> Vec<u8> {
        assert_eq!(bytes.len(), self.ty.size(), "{}", self.ty);
        self.leaves.iter().flat_map(|leaf| &bytes[leaf.offset..][..leaf.size]).copied().collect()
    }

    /// A value that came, without its padding.
    fn pack_value(&self, value: Value<'_>) -> Vec<u8> {
        self.pack(&match value {
            Value::Void => Vec::new(),
            Value::Bool(value) => vec![value.into()],
            Value::I8(value) => value.to_ne_bytes().to_vec(),
            Value::U8(value) => value.to_ne_bytes().to_vec(),
            Value::I16(value) => value.to_ne_bytes().to_vec(),
            Value::U16(value) => value.to_ne_bytes().to_vec(),
            Value::I32(value) => value.to_ne_bytes().to_vec(),
            Value::U32(value) => value.to_ne_bytes().to_vec(),
            Value::I64(value) => value.to_ne_bytes().to_vec(),
            Value::U64(value) => value.to_ne_bytes().to_vec(),
            Value::F32(value) => value.to_ne_bytes().to_vec(),
            Value::F64(value) => value.to_ne_bytes().to_vec(),
            Value::Pointer(value) => value.addr().to_ne_bytes().to_vec(),
            Value::Bytes(bytes) => bytes.to_vec(),
            value => panic!("{value:?}"),
        })
    }
}

/// The types of a function.
struct Shapes {
    parameters: Vec<Shape>,
    result: Shape,
}

impl Shapes {
    fn new(signature: &Signature) -> Self {
        let parameters = signature.parameters().iter().map(Shape::new).collect();
        Self { parameters, result: Shape::new(signature.result()) }
    }

    /// Any arguments, and all of them as C sees them.
    fn arguments(&self, random: &mut Random) -> (Vec<Vec<u8>>, Vec<u8>) {
        let values: Vec<_> = self.parameters.iter().map(|shape| shape.random(random)).collect();
        let packed = self.parameters.iter().zip(&values).flat_map(|(shape, value)| shape.pack(value));
        let packed = packed.collect();
        (values, packed)
    }
}

/// The generated types, by name.
fn types() -> Types {
    let mut types = Types::new();
    for text in abi::enums().chain(abi::structs().iter().map(abi::Struct::declaration)) {
        types.declare(text).unwrap_or_else(|error| panic!("{error}"));
    }
    types
}

/// A generated function with its signature: with the types of its `...`, if it has one.
fn signature(types: &Types, text: &str) -> Signature {
    types.prototype(text).unwrap_or_else(|error| panic!("{error}")).1
}

/// Compares what went in at one side with what came out at the other.
///
/// # Errors
///
/// Where they differ.
fn compare(what: &str, came: &[u8], expected: &[u8], declaration: &str, seed: u64) -> Result<(), String> {
    if came == expected {
        return Ok(());
    }
    Err(format!("{declaration}: {what}, seed {seed:#x}:\n  {came:02x?}\n  {expected:02x?} was expected"))
}

/// Calls C's function a number of times, and compares what it sees and says.
///
/// # Errors
///
/// Where they differ.
fn check_calls(
    mut call: Call<'_, TestVm>,
    shapes: &Shapes,
    declaration: &str,
    random: &mut Random,
) -> Result<(), String> {
    for _ in 0..ROUNDS {
        let seed = random.state;
        let (values, packed) = shapes.arguments(random);
        let said = shapes.result.random(random);
        let said = shapes.result.pack(&said);
        abi::say(&said);
        for (shape, value) in shapes.parameters.iter().zip(&values) {
            call.value(shape.ty.read(value).unwrap()).map_err(|error| error.to_string())?;
        }
        // SAFETY: the signature is made of the prototype that was compiled, and the function takes any values.
        let result = unsafe { call.run() }.map_err(|error| error.to_string())?.result();
        compare("C got other arguments", &abi::seen(), &packed, declaration, seed)?;
        compare("another result came", &shapes.result.pack_value(result), &said, declaration, seed)?;
    }
    Ok(())
}

/// Shows what has failed, and how much of it.
#[track_caller]
fn assert_none(failed: &[String], of: usize) {
    let shown = failed.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(failed.is_empty(), "{} of {of} functions:\n{shown}", failed.len());
}

#[test]
fn c_gets_what_a_dynamic_call_passes_and_the_call_what_c_returns() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let (types, mut random, mut in_registers) = (types(), Random::new(SEED), 0);
    let (mut failed, mut checked) = (Vec::new(), 0);
    for entry in abi::functions() {
        // With the types behind `...` named.
        let named = signature(&types, entry.call());
        let shapes = Shapes::new(&named);
        random.prepare(&named);
        let mut check = |signature: &Signature| {
            let function = Function::new(entry.callee as *const _, "callee", signature).unwrap();
            let call = mutator.foreign_call().dynamic(&function);
            failed.extend(check_calls(call, &shapes, entry.call(), &mut random).err());
            checked += 1;
        };
        check(&named);
        in_registers += usize::from(named.is_in_registers());
        // And without, as far as values have types of their own.
        let of_their_own = |ty: &Type| !matches!(ty, Type::Struct(_) | Type::Scalar(Scalar::LongDouble));
        if named.is_variadic() && named.parameters()[named.fixed()..].iter().all(of_their_own) {
            let unnamed = signature(&types, entry.prototype());
            assert_eq!(unnamed.parameters().len(), named.fixed());
            check(&unnamed);
        }
    }
    assert_none(&failed, checked);
    assert!(REGISTERS.is_none() || in_registers > 100, "{in_registers} through registers");
}

/// What a closure has got, and what it is to give.
#[derive(Default)]
struct Desk {
    visits: usize,
    got: Vec<u8>,
    give: Vec<u8>,
}

/// A closure that takes what comes to the desk, and gives what lies there. It collects at every other visit.
fn clerk(
    world: &World<TestVm>,
    signature: &Signature,
    shapes: &Arc<Shapes>,
    desk: &Arc<Mutex<Desk>>,
) -> Closure<TestVm> {
    let (shapes, desk) = (Arc::clone(shapes), Arc::clone(desk));
    let body = move |mutator: &mut Mutator<TestVm>, call: &Invocation<'_>| {
        let mut desk = desk.lock().unwrap();
        if desk.visits.is_multiple_of(2) {
            TestVm::collect_in(mutator).unwrap();
        }
        desk.visits += 1;
        let arguments = shapes.parameters.iter().zip(call.arguments());
        desk.got = arguments.flat_map(|(shape, value)| shape.pack_value(value)).collect();
        let result = shapes.result.ty.read(&desk.give).unwrap();
        call.returns(result).unwrap_or_else(|error| panic!("{error}"));
        Ok(())
    };
    Closure::new(world, signature, body).unwrap_or_else(|error| panic!("{error}: {signature}"))
}

#[test]
fn a_closure_gets_what_c_passes_and_c_what_it_returns_while_it_collects() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let mut object = world.vm().heap().alloc(&[], b"it moves meanwhile");
    let (types, mut random, mut callers) = (types(), Random::new(SEED), 0);
    let mut failed = Vec::new();
    for entry in abi::functions() {
        let Some(caller) = entry.caller else { continue };
        callers += 1;
        let signature = signature(&types, entry.prototype());
        random.prepare(&signature);
        let shapes = Arc::new(Shapes::new(&signature));
        let desk = Arc::new(Mutex::new(Desk::default()));
        let closure = clerk(&world, &signature, &shapes, &desk);
        let mut call = mutator.foreign_call();
        let root = call.root(object);
        let mut check = |random: &mut Random| {
            let seed = random.state;
            let (_, packed) = shapes.arguments(random);
            let give = shapes.result.random(random);
            desk.lock().unwrap().give.clone_from(&give);
            abi::say(&packed);
            // SAFETY: the closure has the type of the functions that this one calls.
            call.run(|| unsafe { caller(closure.code()) });
            let (got, gave) = (&desk.lock().unwrap().got, shapes.result.pack(&give));
            compare("the closure got other arguments", got, &packed, entry.prototype(), seed)?;
            compare("C got another result", &abi::seen(), &gave, entry.prototype(), seed)
        };
        let results: Vec<_> = (0..ROUNDS).map(|_| check(&mut random)).collect();
        failed.extend(results.into_iter().find_map(Result::err));
        assert_eq!(desk.lock().unwrap().visits, ROUNDS);
        object = call.get(root);
    }
    assert_none(&failed, callers);
    assert_eq!(world.vm().heap().bytes(object).as_deref(), Ok(&b"it moves meanwhile"[..]));
    let (collections, moved) = world.vm().totals();
    assert_eq!((collections, moved), ((callers * ROUNDS / 2) as u64, collections));
}

/// Calls the functions that take and return a struct which holds a `long double` alone. Gives how many there are.
fn check_lone_long_doubles(mutator: &mut Mutator<TestVm>) -> usize {
    let (types, mut random) = (types(), Random::new(SEED));
    let (mut failed, mut checked) = (Vec::new(), 0);
    for entry in abi::functions() {
        let signature = signature(&types, entry.prototype());
        let shapes = Shapes::new(&signature);
        let [Leaf { ty: Type::Scalar(Scalar::LongDouble), .. }] = &shapes.result.leaves[..] else { continue };
        if signature.parameters() == [signature.result().clone()] && signature.abi() == Abi::C {
            let function = Function::new(entry.callee as *const _, "callee", &signature).unwrap();
            let call = mutator.foreign_call().dynamic(&function);
            failed.extend(check_calls(call, &shapes, entry.prototype(), &mut random).err());
            checked += 1;
        }
    }
    assert_none(&failed, checked);
    checked
}

/// x87 returns such a struct in its own register, which libffi does not know of. What nobody takes from x87's stack is in the way of the eighth call after it.
#[test]
fn a_struct_of_one_long_double_comes_back_and_leaves_nothing_behind() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let checked = check_lone_long_doubles(&mut mutator);
    assert!(checked >= 3, "the number itself, in a struct, and in an array in a struct: {checked}");
}

/// The fixed arguments alone would travel in registers, so the function's own signature says so; with what follows they go through libffi, which has the result.
#[test]
fn a_variadic_call_has_its_result_when_its_arguments_outgrow_the_registers() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("int (char*, size_t, const char*, ...)").unwrap();
    let snprintf = Library::this_process().function("snprintf", &signature).unwrap();
    for count in 0..=20_usize {
        let mut call = mutator.foreign_call().dynamic(&snprintf);
        let text = call.copy_slice(&[0_u8; 128]).unwrap();
        call.value(128_usize).unwrap();
        call.text(&"%d,".repeat(count)).unwrap();
        let numbers = 0..i32::try_from(count).unwrap();
        numbers.clone().for_each(|number| call.value(number).unwrap());
        let expected: String = numbers.map(|number| format!("{number},")).collect();
        // SAFETY: the signature is that of `snprintf`; the format asks for as many numbers as there are.
        let result = unsafe { call.run() }.unwrap().result();
        assert_eq!(result, Value::I32(i32::try_from(expected.len()).unwrap()), "{count} numbers");
        assert_eq!(&call.read_slice(text)[..=expected.len()], format!("{expected}\0").as_bytes());
    }
}

/// The names of C's conversions say what it looks for; the values are smaller.
#[test]
fn small_values_behind_an_ellipsis_are_promoted_as_c_promotes_them() {
    let world = World::new(TestVm::new());
    let mut mutator = world.attach().unwrap();
    let signature = Signature::parse("int (char*, size_t, const char*, ...)").unwrap();
    let snprintf = Library::this_process().function("snprintf", &signature).unwrap();
    let mut random = Random::new(SEED);
    for round in 0..ROUNDS {
        let (a, b, c, d) =
            (random.word() as i8, random.word() as u8, random.word() as i16, random.word() as u16);
        let (half, truth) = (f32::from(random.word() as i16) / 2.0, round % 2 == 0);
        let mut call = mutator.foreign_call().dynamic(&snprintf);
        let text = call.copy_slice(&[0_u8; 128]).unwrap();
        call.value(128_usize).unwrap();
        call.text("%d %d %d %d %d %.1f %d").unwrap();
        let values = [truth.into(), a.into(), b.into(), c.into(), d.into(), half.into(), Value::I8(-1)];
        values.into_iter().for_each(|value| call.value(value).unwrap());
        // SAFETY: the signature is that of `snprintf`, and the format asks for these values as they are promoted.
        unsafe { call.run() }.unwrap();
        let expected = format!("{} {a} {b} {c} {d} {half:.1} -1\0", i32::from(truth));
        assert_eq!(&call.read_slice(text)[..expected.len()], expected.as_bytes());
    }
}

#[test]
fn scalars_have_the_size_the_alignment_and_the_sign_that_c_gives_them() {
    let mut names: BTreeSet<_> = Scalar::ALL.iter().map(|scalar| scalar.name()).collect();
    for of_c in abi::scalars() {
        assert!(names.remove(of_c.name()), "{}", of_c.name());
        let ty = Types::new().parse(of_c.name()).unwrap();
        assert_eq!((ty.size(), ty.alignment()), (of_c.size, of_c.alignment), "{ty}");
        let ones = vec![0xFF; ty.size()];
        let expected = if of_c.is_signed() { Some(-1) } else { None };
        match ty {
            Type::Scalar(Scalar::Float | Scalar::Double | Scalar::LongDouble | Scalar::Bool) => {}
            _ => assert_eq!(ty.read(&ones).unwrap().as_i64().filter(|value| *value < 0), expected, "{ty}"),
        }
    }
    assert_eq!(names, BTreeSet::new(), "the table leaves none out");
}

#[test]
fn structs_are_laid_out_as_c_lays_them_out() {
    let types = types();
    let (mut sizes, mut shapes) = (BTreeSet::new(), BTreeSet::new());
    for of_c in abi::structs() {
        let Type::Struct(ty) = types.parse(of_c.declaration().trim_end_matches(';')).unwrap() else {
            panic!("{}", of_c.declaration())
        };
        assert_eq!((ty.size(), ty.alignment()), (of_c.size, of_c.alignment), "{ty}");
        let offsets: Vec<_> = ty.fields().iter().map(|field| field.offset()).collect();
        assert_eq!(offsets, of_c.offsets(), "{ty}");
        sizes.insert(ty.size());
        shapes.insert(of_c.declaration().split_once('{').unwrap().1);
    }
    assert!(shapes.len() >= 240 && shapes.len() == abi::structs().len(), "{} shapes", shapes.len());
    assert_eq!((sizes.first(), sizes.last()), (Some(&1), Some(&64)));
    assert!((1..=20).all(|size| sizes.contains(&size)), "{sizes:?}");
}

/// The table has what it is for: a generator that leaves something out is found out here.
#[test]
fn the_table_has_every_scalar_and_every_number_of_arguments_in_both_directions() {
    let types = types();
    let (mut taken, mut returned) = (BTreeSet::new(), BTreeSet::new());
    let (mut counts, mut extras) = ([0; 2], BTreeSet::new());
    for entry in abi::functions() {
        let signature = signature(&types, entry.call());
        assert_eq!(entry.caller.is_none(), signature.is_variadic());
        let win64 = signature.abi() == Abi::Win64;
        let only_scalars = signature.parameters().iter().all(|ty| !matches!(ty, Type::Struct(_)));
        if signature.is_variadic() {
            extras.insert((win64, signature.parameters().len() - signature.fixed()));
        } else if only_scalars {
            counts[usize::from(win64)] |= 1_u32 << signature.parameters().len();
        }
        taken.extend(signature.parameters().iter().map(|ty| (win64, ty.to_string())));
        returned.insert((win64, signature.result().to_string()));
    }
    let abis = if Abi::Win64.is_supported() { vec![false, true] } else { vec![false] };
    for win64 in abis {
        assert_eq!(counts[usize::from(win64)], (1 << 21) - 1, "0 to 20 arguments");
        assert!((0..=12).all(|count| extras.contains(&(win64, count))), "0 to 12 behind `...`");
        let named = Scalar::ALL.iter().map(|scalar| scalar.name()).chain(["void*", "enum colour"]);
        for name in named {
            assert!(taken.contains(&(win64, name.to_owned())), "{name}");
            assert!(returned.contains(&(win64, name.to_owned())), "{name}");
        }
        let structs = taken.iter().filter(|(abi, name)| *abi == win64 && name.starts_with("struct")).count();
        assert!(structs >= if win64 { 60 } else { 240 }, "{structs} structs by value");
    }
}

/// How many integers and floating-point numbers travel in registers, where the crate loads them itself.
const REGISTERS: Option<(usize, usize)> = if cfg!(all(target_arch = "x86_64", unix)) {
    Some((6, 8))
} else if cfg!(all(target_arch = "aarch64", unix)) {
    Some((8, 8))
} else {
    None
};

/// What [`Signature::is_in_registers`] must say.
fn fits_in_registers(signature: &Signature) -> bool {
    let Some((integers, floats)) = REGISTERS else { return false };
    let in_memory = |ty: &Type| matches!(ty, Type::Struct(_) | Type::Scalar(Scalar::LongDouble));
    let is_float = |ty: &&Type| matches!(ty, Type::Scalar(Scalar::Float | Scalar::Double));
    let parameters = signature.parameters();
    let count = parameters.iter().filter(is_float).count();
    signature.abi() != Abi::Win64
        && !(signature.is_variadic() && cfg!(target_vendor = "apple"))
        && !parameters.iter().chain([signature.result()]).any(in_memory)
        && (parameters.len() - count <= integers && count <= floats)
}

#[test]
fn a_signature_is_in_registers_exactly_if_there_are_enough_of_them() {
    let types = types();
    let mut numbers = [0; 2];
    for entry in abi::functions() {
        let signature = signature(&types, entry.call());
        assert_eq!(signature.is_in_registers(), fits_in_registers(&signature), "{signature}");
        numbers[usize::from(signature.is_in_registers())] += 1;
    }
    assert!(numbers[0] > 500 && (REGISTERS.is_none() || numbers[1] > 100), "{numbers:?}");
    // At the edge.
    let (int, double) = (Type::Scalar(Scalar::Int), Type::Scalar(Scalar::Double));
    for integers in 0..12 {
        for floats in 0..12 {
            let parameters = [vec![int.clone(); integers], vec![double.clone(); floats]].concat();
            let signature = Signature::new(Abi::C, Type::Void, parameters).unwrap();
            let expected = REGISTERS.is_some_and(|(i, f)| integers <= i && floats <= f);
            assert_eq!(signature.is_in_registers(), expected, "{signature}");
        }
    }
}

/// libffi's type for a scalar, by what C says of it.
fn libffi_type(ty: &Type) -> libffi::middle::Type {
    use libffi::middle::Type as Ffi;
    let name = match ty {
        Type::Void => return Ffi::void(),
        Type::Pointer(_) => return Ffi::pointer(),
        Type::Scalar(Scalar::Float) => return Ffi::f32(),
        Type::Scalar(Scalar::Double) => return Ffi::f64(),
        Type::Scalar(Scalar::LongDouble) => return Ffi::longdouble(),
        ty => ty.to_string(),
    };
    let of_c = abi::scalars().iter().find(|scalar| scalar.name() == name).expect("a scalar");
    match (of_c.size, of_c.is_signed()) {
        (1, true) => Ffi::i8(),
        (1, false) => Ffi::u8(),
        (2, true) => Ffi::i16(),
        (2, false) => Ffi::u16(),
        (4, true) => Ffi::i32(),
        (4, false) => Ffi::u32(),
        (8, true) => Ffi::i64(),
        (8, false) => Ffi::u64(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Memory for any scalar.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Place([u8; 16]);

/// The same code is called twice, by the crate and by libffi: the closure must get the same arguments, and the caller the same result.
#[test]
fn calls_through_registers_agree_with_calls_through_libffi() {
    let world = World::new(TestVm::new());
    let in_registers = Mutex::new(0);
    let property = |(parameters, result, seed): (Vec<Type>, Type, u64)| {
        let mut mutator = world.attach().unwrap();
        let signature = Signature::new(Abi::C, result, parameters).unwrap();
        assert_eq!(signature.is_in_registers(), fits_in_registers(&signature), "{signature}");
        *in_registers.lock().unwrap() += usize::from(signature.is_in_registers());
        let (shapes, desk) = (Arc::new(Shapes::new(&signature)), Arc::new(Mutex::new(Desk::default())));
        let closure = clerk(&world, &signature, &shapes, &desk);
        let function = Function::new(closure.code(), "closure", &signature).unwrap();
        let cif = libffi::middle::Cif::new(
            signature.parameters().iter().map(libffi_type),
            libffi_type(signature.result()),
        );
        let mut random = Random::new(seed);
        for _ in 0..4 {
            let (values, packed) = shapes.arguments(&mut random);
            let give = shapes.result.random(&mut random);
            desk.lock().unwrap().give.clone_from(&give);
            let give = shapes.result.pack(&give);

            let places: Vec<Place> = values
                .iter()
                .map(|value| {
                    let mut place = Place([0; 16]);
                    place.0[..value.len()].copy_from_slice(value);
                    place
                })
                .collect();
            let arguments: Vec<_> = places.iter().map(|place| libffi::middle::arg(&place.0)).collect();
            let mut result = Place([0; 16]);
            mutator.foreign_call().run(|| {
                let code = libffi::middle::CodePtr::from_ptr(closure.code());
                // SAFETY: the closure has this type, each argument its place, and the result too.
                unsafe { cif.call_return_into(code, &arguments, libffi::middle::ret(&mut result.0)) };
            });
            let by_libffi = core::mem::take(&mut desk.lock().unwrap().got);
            let result = shapes.result.pack(&result.0[..signature.result().size()]);
            assert_eq!((by_libffi, result), (packed.clone(), give.clone()), "libffi's: {signature}");

            let mut call = mutator.foreign_call().dynamic(&function);
            for (shape, value) in shapes.parameters.iter().zip(&values) {
                call.value(shape.ty.read(value).unwrap()).unwrap();
            }
            // SAFETY: the closure has this signature.
            let result = shapes.result.pack_value(unsafe { call.run() }.unwrap().result());
            let by_the_crate = core::mem::take(&mut desk.lock().unwrap().got);
            assert_eq!((by_the_crate, result), (packed, give), "the crate's: {signature}");
        }
        Ok(())
    };
    let scalars: Vec<Type> = Scalar::ALL.iter().map(|scalar| Type::Scalar(*scalar)).collect();
    let floats = [Scalar::Float, Scalar::Double].map(Type::Scalar).to_vec();
    let scalar = || {
        let (any, floats) =
            (proptest::sample::select(scalars.clone()), proptest::sample::select(floats.clone()));
        proptest::prop_oneof![4 => any, 3 => floats, 1 => Just(Type::pointer())]
    };
    let result = proptest::prop_oneof![1 => Just(Type::Void), 6 => scalar()];
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(CASES) });
    runner.run(&(vec(scalar(), 0..=14), result, any::<u64>()), property).unwrap();
    let in_registers = in_registers.into_inner().unwrap();
    assert!(REGISTERS.is_none() || in_registers > CASES as usize / 10, "{in_registers} of {CASES}");
}

/// How many signatures the property looks at.
const CASES: u32 = if cfg!(any(debug_assertions, feature = "checked")) { 300 } else { 2000 };
