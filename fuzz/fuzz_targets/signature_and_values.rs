//! A signature, a closure of it, and a call with values: the closure's body sees what was passed, and the call gets what the body returned, bit for bit.
//!
//! On the way: calls with too few arguments, too many, and of other types, which call nothing; bodies that throw; calls of closures that have been dropped, in a quarantine
//! of sixteen.
#![no_main]

use arbitrary::{Result, Unstructured};
use core::sync::atomic::{AtomicUsize, Ordering};
use libfuzzer_sys::fuzz_target;
use reentry::dynamic::{
    Abi, Call, CallError, Closure, ClosureError, Function, Quarantine, Scalar, Signature, Struct, Type,
    TypeError, Value,
};
use reentry::testkit::bytecode::Program;
use reentry::testkit::{TestVm, Trap};
use reentry::{ErrorPolicy, World};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

static WORLD: LazyLock<World<TestVm>> = LazyLock::new(|| {
    Quarantine::of(16).install();
    // Reports are expected, and counted by nobody.
    World::new(TestVm::builder(Program::new(Vec::new()).expect("an empty program")).on_report(|_| {}).build())
});

fn ty(u: &mut Unstructured<'_>, depth: usize) -> Result<Type> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Type::Enum("colour".into()),
        1 => Type::pointer(),
        2 => Type::Scalar(Scalar::Char).pointer_to(u.arbitrary()?),
        3 | 4 if depth < 3 => {
            let count = u.int_in_range(1..=5)?;
            let mut fields = Vec::new();
            for index in 0..count {
                fields.push((format!("f{index}").into(), field(u, depth + 1)?));
            }
            match Struct::new(None, fields) {
                Ok(structure) => Type::Struct(Arc::new(structure)),
                Err(TypeError::TooLarge { .. }) => Type::pointer(),
                Err(error) => panic!("{error}"),
            }
        }
        _ => Type::Scalar(*u.choose(Scalar::ALL)?),
    })
}

fn field(u: &mut Unstructured<'_>, depth: usize) -> Result<Type> {
    let own = ty(u, depth)?;
    Ok(if u.ratio(1, 6)? { Type::Array(Arc::new(own), u.int_in_range(1..=9)?) } else { own })
}

/// The bytes of a value of a type. Those that a C compiler may leave as they are, or that mean nothing, are zero.
fn bytes(u: &mut Unstructured<'_>, ty: &Type) -> Result<Vec<u8>> {
    let mut bytes = u.bytes(ty.size().min(u.len()))?.to_vec();
    bytes.resize(ty.size(), 0x5A);
    mask(ty, &mut bytes);
    Ok(bytes)
}

/// Clears what is padding, and makes truth values of truth values.
fn mask(ty: &Type, bytes: &mut [u8]) {
    match ty {
        Type::Scalar(Scalar::Bool) => bytes[0] &= 1,
        // x87: ten bytes of sixteen.
        Type::Scalar(Scalar::LongDouble) if cfg!(target_arch = "x86_64") => bytes[10..].fill(0),
        Type::Struct(structure) => {
            let mut kept = vec![0; bytes.len()];
            for field in structure.fields() {
                let range = field.offset()..field.offset() + field.ty().size();
                mask(field.ty(), &mut bytes[range.clone()]);
                kept[range.clone()].copy_from_slice(&bytes[range]);
            }
            bytes.copy_from_slice(&kept);
        }
        Type::Array(element, _) => bytes.chunks_exact_mut(element.size()).for_each(|own| mask(element, own)),
        _ => {}
    }
}

/// The bytes of a value that has come, in which what means nothing is zero.
fn came(ty: &Type, value: Value<'_>) -> Vec<u8> {
    let mut bytes = match value {
        Value::Bool(value) => vec![u8::from(value)],
        Value::I8(value) => value.to_ne_bytes().to_vec(),
        Value::U8(value) => vec![value],
        Value::I16(value) => value.to_ne_bytes().to_vec(),
        Value::U16(value) => value.to_ne_bytes().to_vec(),
        Value::I32(value) => value.to_ne_bytes().to_vec(),
        Value::U32(value) => value.to_ne_bytes().to_vec(),
        Value::I64(value) => value.to_ne_bytes().to_vec(),
        Value::U64(value) => value.to_ne_bytes().to_vec(),
        Value::F32(value) => value.to_bits().to_ne_bytes().to_vec(),
        Value::F64(value) => value.to_bits().to_ne_bytes().to_vec(),
        Value::Pointer(value) => value.addr().to_ne_bytes().to_vec(),
        Value::Bytes(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    };
    assert_eq!(bytes.len(), ty.size(), "a value of `{ty}` came as {value:?}");
    mask(ty, &mut bytes);
    bytes
}

/// The same value as another variant, where there is one that every type takes which takes the value's own.
fn disguised<'v>(u: &mut Unstructured<'_>, value: Value<'v>) -> Result<Value<'v>> {
    Ok(match (value.as_i64(), value.as_u64()) {
        (Some(value), _) if u.ratio(1, 4)? => Value::I64(value),
        (_, Some(value)) if u.ratio(1, 4)? => Value::U64(value),
        _ => value,
    })
}

/// A value that no parameter of the type takes.
fn wrong(u: &mut Unstructured<'_>, ty: &Type, too_long: &'static [u8; 1 << 16]) -> Result<Value<'static>> {
    let integer = matches!(ty, Type::Enum(_))
        || matches!(ty, Type::Scalar(scalar) if !matches!(scalar, Scalar::Float | Scalar::Double | Scalar::LongDouble));
    Ok(match (u.int_in_range(0..=3)?, ty) {
        (0, _) => Value::Void,
        (1, ty) => Value::Bytes(&too_long[..ty.size() + 1]),
        (2, Type::Pointer(_)) => Value::I64(0),
        (2, _) => Value::NULL,
        (_, _) if integer && ty.size() < 8 => Value::I64(1 << 40),
        (_, _) if integer => Value::F64(1.0),
        _ => Value::I32(1),
    })
}

/// The type that a value has behind `...` if nobody names it.
fn of_variant(value: Value<'_>) -> Option<Type> {
    Some(match value {
        Value::Bool(_) | Value::I8(_) | Value::U8(_) | Value::I16(_) | Value::U16(_) | Value::I32(_) => {
            Type::Scalar(Scalar::Int)
        }
        Value::U32(_) => Type::Scalar(Scalar::UInt32),
        Value::I64(_) => Type::Scalar(Scalar::Int64),
        Value::U64(_) => Type::Scalar(Scalar::UInt64),
        Value::F32(_) | Value::F64(_) => Type::Scalar(Scalar::Double),
        Value::Pointer(_) => Type::pointer(),
        _ => return None,
    })
}

/// Passes values, some as other variants.
fn pass(
    u: &mut Unstructured<'_>,
    call: &mut Call<'_, TestVm>,
    types: &[Type],
    values: &[Vec<u8>],
    fixed: usize,
) -> Result<()> {
    for (index, (ty, bytes)) in types.iter().zip(values).enumerate() {
        let value = ty.read(bytes).expect("as many bytes as the type has");
        let value = if index < fixed { disguised(u, value)? } else { value };
        call.value(value).unwrap_or_else(|error| panic!("{value:?} for `{ty}`: {error}"));
    }
    Ok(())
}

/// What the body has seen, and what it is to do.
#[derive(Default)]
struct Body {
    calls: AtomicUsize,
    seen: Mutex<Vec<Vec<u8>>>,
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let abi = if u.ratio(1, 4)? { *u.choose(&[Abi::SysV64, Abi::Win64, Abi::StdCall])? } else { Abi::C };
    let result = if u.ratio(1, 8)? { Type::Void } else { ty(u, 0)? };
    let count = if u.ratio(1, 16)? { u.int_in_range(0..=80)? } else { u.int_in_range(0..=12)? };
    let mut types = Vec::new();
    for _ in 0..count {
        types.push(ty(u, 0)?);
    }
    // What stands for `...`, if there is one, from here on; the types are named, or found by the values.
    let variadic = u.ratio(1, 4)?;
    let fixed = if variadic { u.int_in_range(0..=types.len())? } else { types.len() };
    let named: bool = u.arbitrary()?;
    if !named {
        types.truncate(fixed + 64);
    }
    for own in &mut types[fixed..] {
        *own = own.promoted();
        if !named {
            let sample = vec![0; own.size()];
            *own = of_variant(own.read(&sample).expect("as many bytes")).unwrap_or_else(Type::pointer);
        }
    }

    let signature = match Signature::new(abi, result.clone(), types.clone()) {
        Ok(signature) => signature,
        Err(TypeError::UnsupportedAbi(refused)) => {
            assert!(!abi.is_supported() && refused == abi);
            return Ok(());
        }
        Err(TypeError::TooLarge { .. }) => return Ok(()),
        Err(error) => panic!("{error}"),
    };
    let printed = signature.to_string();
    assert_eq!(Signature::parse(&printed).unwrap_or_else(|error| panic!("{error}")), signature);
    let called = if variadic {
        let open = Signature::variadic(abi, result.clone(), types[..fixed].to_vec()).expect("as the other");
        assert!(matches!(Closure::new(&WORLD, &open, |_, _| Ok(())), Err(ClosureError::Variadic(_))));
        if named { open.with_variadic(&types[fixed..]).expect("promoted") } else { open }
    } else {
        signature.clone()
    };
    let unnamed = variadic && called.parameters().len() == fixed;

    let (gives, fallback) = (bytes(u, &result)?, bytes(u, &result)?);
    let (throws, collects) = (u.ratio(1, 8)?, u.ratio(1, 8)?);
    let body = Arc::new(Body::default());
    let as_value = |bytes| result.read(bytes).expect("as many bytes");
    let closure = Closure::builder(&WORLD, &signature)
        .fallback(as_value(&fallback))
        .on_error(ErrorPolicy::Fallback)
        .build({
            let (body, result, gives) = (Arc::clone(&body), result.clone(), gives.clone());
            move |mutator, call| {
                body.calls.fetch_add(1, Ordering::Relaxed);
                let seen =
                    call.arguments().zip(call.signature().parameters()).map(|(value, ty)| came(ty, value));
                *body.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen.collect();
                assert!(call.get(call.len()).is_none());
                if collects {
                    TestVm::collect_in(mutator).expect("no root is stale");
                }
                if result != Type::Void {
                    assert!(call.returns(Value::Void).is_err());
                }
                call.returns(result.read(&gives).expect("as many bytes")).expect("of the result's type");
                if throws { Err(Trap::NoSuchFunction("none".to_owned())) } else { Ok(()) }
            }
        });
    let closure = closure.expect("a closure");
    let function = Function::new(closure.code(), "closure", &called).expect("not null");
    let mut mutator = WORLD.attach().expect("the only one of this thread");
    let mut call = mutator.foreign_call().dynamic(&function);

    static LONG: [u8; 1 << 16] = [0; 1 << 16];
    // Without any: one too few, if it takes one.
    if !called.parameters().is_empty() {
        // SAFETY: nothing is called.
        let error = unsafe { call.run() }.map(|_| ()).expect_err("arguments are missing");
        assert!(matches!(error, CallError::WrongCount { came: 0, .. }), "{error}");
    }
    for _ in 0..u.int_in_range(1..=3)? {
        let mut values = Vec::new();
        for own in &types {
            values.push(bytes(u, own)?);
        }
        let before = u.int_in_range(0..=types.len())?;
        pass(u, &mut call, &types[..before], &values, fixed)?;
        if before < called.parameters().len() {
            // Of another type: refused, and nothing is lost.
            let value = wrong(u, &types[before], &LONG)?;
            let error = call.value(value).expect_err("of another type");
            assert!(matches!(&error, CallError::WrongType { index, .. } if *index == before), "{error}");
            if u.arbitrary()? {
                // SAFETY: nothing is called.
                let error = unsafe { call.run() }.map(|_| ()).expect_err("arguments are missing");
                assert!(matches!(error, CallError::WrongCount { came, .. } if came == before), "{error}");
                // The call expects its first argument again.
                pass(u, &mut call, &types[..before], &values, fixed)?;
            }
        }
        pass(u, &mut call, &types[before..], &values[before..], fixed.saturating_sub(before))?;
        let one_more = call.value(if unnamed { Value::Void } else { Value::I32(0) });
        assert!(matches!(
            (unnamed, one_more),
            (true, Err(CallError::Variadic { .. })) | (false, Err(CallError::WrongCount { .. }))
        ));
        assert_eq!(body.calls.swap(0, Ordering::Relaxed), 0, "nothing has been called yet");
        // SAFETY: the closure has this signature, or that of the call with the types of these values in place of the `...`.
        let got = came(&result, unsafe { call.run() }.expect("the arguments are complete").result());
        assert_eq!(body.calls.swap(0, Ordering::Relaxed), 1);
        assert_eq!(
            *body.seen.lock().unwrap_or_else(PoisonError::into_inner),
            values,
            "the arguments of `{called}`"
        );
        let expected = if throws { &fallback } else { &gives };
        assert_eq!(&got, expected, "the result of `{called}`");
    }

    // A late call: the code is in quarantine.
    if u.ratio(1, 4)? {
        drop(closure);
        assert_eq!(Arc::strong_count(&body), 1, "the body has been dropped");
        let values: Vec<_> = types.iter().map(|ty| vec![0; ty.size()]).collect();
        pass(u, &mut call, &types, &values, fixed)?;
        // SAFETY: as above; the sixteen that were dropped last are in quarantine.
        let got = came(&result, unsafe { call.run() }.expect("the arguments are complete").result());
        assert_eq!(got, fallback, "the fallback of `{called}`");
        assert_eq!(body.calls.load(Ordering::Relaxed), 0);
    }
    assert!(Quarantine::len() <= 17);
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    // Input that is too short is no finding.
    let _ = run(&mut Unstructured::new(input));
});
