//! Functions of Rhai's standard library that a script must not have as they are.

use rhai::{Engine, EvalAltResult, FLOAT, INT, ImmutableString, NativeCallContext, Position};

use super::Fallible;

/// Functions that other Rhai engines have and scripts do not, with what to do instead.
pub const REFUSED: [(&str, &str); 5] = [
    ("sleep", "scripts have no clock; reading a property or `wait()` waits for a resource"),
    ("timestamp", "scripts have no clock"),
    ("rand", "scripts have no randomness: the same script must do the same again"),
    ("eval", "a script cannot make another"),
    ("curry", "use a closure that captures the value"),
];

pub fn register(engine: &mut Engine) {
    // Rhai's own would block without seeing any limit. The analysis refuses calls by name; these
    // answer calls through a function pointer.
    engine.register_fn("sleep", |_: INT| -> Fallible<()> { Err(no_clock()) });
    engine.register_fn("sleep", |_: FLOAT| -> Fallible<()> { Err(no_clock()) });

    // Rhai's own builds the whole result before it looks at its size.
    engine.register_fn(
        "replace",
        |context: NativeCallContext, text: &mut ImmutableString, from: &str, to: &str| {
            replace(&context, text, from, to)
        },
    );
    engine.register_fn(
        "replace",
        |context: NativeCallContext, text: &mut ImmutableString, from: &str, to: char| {
            replace(&context, text, from, to.encode_utf8(&mut [0; 4]))
        },
    );
    engine.register_fn(
        "replace",
        |context: NativeCallContext, text: &mut ImmutableString, from: char, to: &str| {
            replace(&context, text, from.encode_utf8(&mut [0; 4]), to)
        },
    );
}

fn no_clock() -> Box<EvalAltResult> {
    format!("there is no `sleep`: {}", REFUSED[0].1).into()
}

fn replace(
    context: &NativeCallContext,
    text: &mut ImmutableString,
    from: &str,
    to: &str,
) -> Fallible<()> {
    if text.is_empty() {
        return Ok(());
    }
    let most = context.engine().max_string_size();
    let times = text.matches(from).count();
    let length = (text.len() - times * from.len()).saturating_add(times.saturating_mul(to.len()));
    if most > 0 && length > most {
        let what = "Length of string".to_owned();
        return Err(Box::new(EvalAltResult::ErrorDataTooLarge(what, Position::NONE)));
    }
    *text = text.replace(from, to).into();
    Ok(())
}
