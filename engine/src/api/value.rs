//! Between Rhai's values and JSON.

use rhai::{Array, Dynamic, ImmutableString, Map};
use serde_json::{Number, Value};

use super::handle::Handle;

/// Deeper values are refused: frames are parsed by recursion.
const MAX_DEPTH: usize = 64;
/// Bytes of all texts and entries of one value; a frame that is larger would be refused anyway.
const MAX_SIZE: usize = crate::wire::MAX_FROM_CHILD;
/// What an entry counts besides its text.
const ENTRY: usize = 2;

/// Why a value has no JSON.
pub enum NoJson {
    /// It is, or holds, something that only lives in a script.
    Kind(String),
    /// It is too deep or too large.
    Limit(String),
}

/// A script's value as JSON. A handle becomes the name of its resource.
pub fn to_json(value: &Dynamic) -> Result<Value, NoJson> {
    convert(value, MAX_DEPTH, &mut { MAX_SIZE })
}

fn convert(value: &Dynamic, depth: usize, budget: &mut usize) -> Result<Value, NoJson> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(NoJson::Limit(format!("it is nested more than {MAX_DEPTH} deep")));
    };
    let mut spend = |bytes: usize| {
        *budget = budget
            .checked_sub(bytes + ENTRY)
            .ok_or_else(|| NoJson::Limit(format!("it is larger than {} KiB", MAX_SIZE >> 10)))?;
        Ok(())
    };
    spend(0)?;
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.as_bool() {
        return Ok(flag.into());
    }
    if let Ok(number) = value.as_int() {
        return Ok(number.into());
    }
    if let Ok(number) = value.as_float() {
        let finite = Number::from_f64(number).map(Value::Number);
        return finite.ok_or_else(|| NoJson::Kind(format!("{number} is not a number")));
    }
    if let Ok(letter) = value.as_char() {
        return Ok(letter.to_string().into());
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        spend(text.len())?;
        return Ok(text.as_str().into());
    }
    if let Some(handle) = value.read_lock::<Handle>() {
        return Ok(handle.name().to_string().into());
    }
    if let Some(items) = value.read_lock::<Array>() {
        return items.iter().map(|item| convert(item, depth, budget)).collect();
    }
    if let Some(map) = value.read_lock::<Map>() {
        let mut object = serde_json::Map::new();
        for (key, item) in map.iter() {
            *budget = budget.saturating_sub(key.len());
            object.insert(key.to_string(), convert(item, depth, budget)?);
        }
        return Ok(Value::Object(object));
    }
    Err(NoJson::Kind(format!("a {} cannot be part of it", value.type_name())))
}

/// JSON as a script's value.
pub fn from_json(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(from_json).collect::<Array>().into(),
        Value::Object(map) => {
            map.iter().map(|(k, v)| (k.as_str().into(), from_json(v))).collect::<Map>().into()
        }
    }
}
