//! What stands for a secret where the secret itself may not be: in specs, journals and plans.
//!
//! A script never sees a secret: `secret(name)` gives it a token that holds the sealed text. The
//! runner puts the secret in its place just before the workload is made; whoever shows a spec to
//! people puts `(secret NAME)` there.

use serde_json::Value;

const OPEN: &str = "\u{e000}sealed:";
const CLOSE: &str = "\u{e001}";

/// The token of a sealed secret. The context is `ACCOUNT/DEPLOYMENT/NAME`.
pub fn secret_token(context: &str, sealed: &str) -> String {
    format!("{OPEN}{context}:{sealed}{CLOSE}")
}

/// Whether a text has a token in it.
pub fn has_secret(text: &str) -> bool {
    text.contains(OPEN)
}

/// The first token of a text: where it is, and what stands between its ends.
pub fn find_secret(text: &str) -> Option<(std::ops::Range<usize>, &str)> {
    let start = text.find(OPEN)?;
    let inner = start + OPEN.len();
    let end = inner + text[inner..].find(CLOSE)?;
    Some((start..end + CLOSE.len(), &text[inner..end]))
}

/// The text with `(secret NAME)` for every token in it: equal for equal names, whatever was sealed.
fn mask_text(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some((range, inner)) = find_secret(&text) {
        let context = inner.split(':').next().unwrap_or_default();
        let name = context.rsplit('/').next().unwrap_or_default();
        let mask = format!("(secret {name})");
        text.replace_range(range, &mask);
    }
    text
}

/// The same for every text in a value.
pub fn mask(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(mask_text(text)),
        Value::Array(items) => items.iter().map(mask).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, v)| (mask_text(key), mask(v))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sealed_is_never_shown() {
        let token = |name: &str, sealed| secret_token(&format!("1/demo/{name}"), sealed);
        let text = format!("<{}:{}>", token("a", "c2VhbGVk"), token("b", "b3RoZXI="));
        assert_eq!(mask_text(&text), "<(secret a):(secret b)>");
        let spec = json!({ "env": { "P": token("a", "x"), "N": 1 }, "command": [token("b", "y")] });
        let shown = mask(&spec);
        assert_eq!(
            shown,
            json!({ "env": { "P": "(secret a)", "N": 1 }, "command": ["(secret b)"] })
        );
        assert_eq!(mask_text("plain \u{e000}sealed:cut"), "plain \u{e000}sealed:cut");
    }
}
