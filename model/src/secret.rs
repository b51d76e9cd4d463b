//! What stands for a secret where the secret itself may not be: in specs, journals and plans.
//!
//! A script never sees a secret. `secret(name)` gives it a token that holds the sealed text; what a
//! node generates for a resource, such as the password of a database, has a token that says no more
//! than whose it is. The runner puts the secret in its place just before the workload is made;
//! whoever shows a spec to people puts `(secret NAME)` there.

use std::ops::Range;

use serde_json::Value;

use crate::ResourceId;

const SEALED: &str = "\u{e000}sealed:";
const GENERATED: &str = "\u{e000}generated:";
const CLOSE: &str = "\u{e001}";

/// In place of a secret in a status: whoever looks at a resource sees that there is one.
pub const HIDDEN: &str = "(secret)";

/// What a token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret<'a> {
    /// A secret of the deployment, sealed to the node. The context is `ACCOUNT/DEPLOYMENT/NAME`.
    Sealed { context: &'a str, sealed: &'a str },
    /// What the node derives from its key for a resource, `ACCOUNT/DEPLOYMENT/NAME`.
    Generated { context: &'a str },
}

impl Secret<'_> {
    /// What it is for; not looked at yet.
    pub fn context(&self) -> &str {
        match self {
            Self::Sealed { context, .. } | Self::Generated { context } => context,
        }
    }

    /// Whether it says which secret it is, or that there is one only.
    fn is_known(&self) -> bool {
        match self {
            Self::Sealed { sealed, .. } => !sealed.is_empty(),
            Self::Generated { .. } => true,
        }
    }

    fn mask(&self) -> String {
        let name = self.context().rsplit('/').next().unwrap_or_default();
        match self {
            Self::Sealed { .. } => format!("(secret {name})"),
            Self::Generated { .. } => format!("(secret of {name})"),
        }
    }
}

/// The token of a sealed secret. The context is `ACCOUNT/DEPLOYMENT/NAME`.
pub fn secret_token(context: &str, sealed: &str) -> String {
    format!("{SEALED}{context}:{sealed}{CLOSE}")
}

/// The token of what the node generates for a resource: it follows from the id alone.
pub fn generated_token(id: &ResourceId) -> String {
    format!("{GENERATED}{id}{CLOSE}")
}

/// Whether a text has a token in it.
pub fn has_secret(text: &str) -> bool {
    text.contains(SEALED) || text.contains(GENERATED)
}

/// Whether a text is one token and nothing else.
pub fn is_token(text: &str) -> bool {
    find_secret(text).is_some_and(|(range, _)| range == (0..text.len()))
}

/// The first token of a text: where it is, and what it stands for.
pub fn find_secret(text: &str) -> Option<(Range<usize>, Secret<'_>)> {
    let sealed = text.find(SEALED).map(|at| (at, SEALED));
    let generated = text.find(GENERATED).map(|at| (at, GENERATED));
    let (start, open) = sealed.into_iter().chain(generated).min()?;
    let inner = start + open.len();
    let end = inner + text[inner..].find(CLOSE)?;
    let inside = &text[inner..end];
    let secret = if open == SEALED {
        let (context, sealed) = inside.split_once(':').unwrap_or((inside, ""));
        Secret::Sealed { context, sealed }
    } else {
        Secret::Generated { context: inside }
    };
    Some((start..end + CLOSE.len(), secret))
}

/// Every token in the texts of a value.
pub fn tokens(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect_tokens(value, &mut found);
    found
}

fn collect_tokens(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            let mut rest = text.as_str();
            while let Some((range, _)) = find_secret(rest) {
                found.push(rest[range.clone()].to_owned());
                rest = &rest[range.end..];
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_tokens(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| collect_tokens(field, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text with something else for every token in it.
fn replace_tokens(text: &str, with: &impl Fn(&Secret<'_>, &str) -> String) -> String {
    let (mut done, mut rest) = (String::new(), text);
    while let Some((range, secret)) = find_secret(rest) {
        done += &rest[..range.start];
        done += &with(&secret, &rest[range.clone()]);
        rest = &rest[range.end..];
    }
    done + rest
}

/// The same for every text in a value.
fn replace_all(value: &Value, with: &impl Fn(&Secret<'_>, &str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(replace_tokens(text, with)),
        Value::Array(items) => items.iter().map(|item| replace_all(item, with)).collect(),
        Value::Object(fields) => {
            let replaced =
                |(key, v): (&String, &Value)| (replace_tokens(key, with), replace_all(v, with));
            Value::Object(fields.iter().map(replaced).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// The value with `(secret NAME)` for every token in its texts: equal for equal names, whatever was
/// sealed.
pub fn mask(value: &Value) -> Value {
    replace_all(value, &|secret, _| secret.mask())
}

/// The same of a value that follows another one. A secret that is there by the same name but was
/// sealed otherwise is `(secret NAME, changed)`; where either is not known it is not.
pub fn mask_after(value: &Value, before: &Value) -> Value {
    let before = tokens(before);
    replace_all(value, &|secret, token| {
        let same_name = before.iter().filter_map(|t| Some((t, find_secret(t)?.1)));
        let mut same_name = same_name.filter(|(_, b)| b.context() == secret.context()).peekable();
        let differs = |(t, b): (&String, Secret<'_>)| t != token && b.is_known();
        if secret.is_known() && same_name.peek().is_some() && same_name.all(differs) {
            secret.mask().replace(')', ", changed)")
        } else {
            secret.mask()
        }
    })
}

/// The value with what was sealed in the tokens of those secrets; the others stay as they are.
pub fn fill(value: &Value, sealed: impl Fn(&str) -> Option<String>) -> Value {
    replace_all(value, &|secret, token| match secret {
        Secret::Sealed { context, .. } => {
            let name = context.rsplit('/').next().unwrap_or_default();
            sealed(name).map_or_else(|| token.to_owned(), |sealed| secret_token(context, &sealed))
        }
        Secret::Generated { .. } => token.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sealed_is_never_shown() {
        let token = |name: &str, sealed| secret_token(&format!("1/demo/{name}"), sealed);
        let text = format!("<{}:{}>", token("a", "c2VhbGVk"), token("b", "b3RoZXI="));
        assert_eq!(mask(&json!(text)), "<(secret a):(secret b)>");
        let spec = json!({ "env": { "P": token("a", "x"), "N": 1 }, "command": [token("b", "y")] });
        let shown = mask(&spec);
        assert_eq!(
            shown,
            json!({ "env": { "P": "(secret a)", "N": 1 }, "command": ["(secret b)"] })
        );
        assert_eq!(mask(&json!("plain \u{e000}sealed:cut")), "plain \u{e000}sealed:cut");
    }

    #[test]
    fn a_secret_that_changed_is_told_from_one_that_did_not() {
        let token = |name: &str, sealed| secret_token(&format!("1/demo/{name}"), sealed);
        let after = |old: &[String], new: &str| mask_after(&json!(new), &json!(old));
        assert_eq!(after(&[token("a", "x")], &token("a", "x")), "(secret a)");
        assert_eq!(after(&[token("a", "x")], &token("a", "y")), "(secret a, changed)");
        assert_eq!(after(&[token("a", "x"), token("a", "y")], &token("a", "y")), "(secret a)");
        assert_eq!(after(&[token("b", "x")], &token("a", "y")), "(secret a)", "another name");
        assert_eq!(after(&[token("a", "x")], &token("a", "")), "(secret a)", "not known");
        assert_eq!(after(&[token("a", "")], &token("a", "y")), "(secret a)", "not known");
        let sealed = |name: &str| (name == "a").then(|| "x".to_owned());
        let spec = json!({ "env": [token("a", ""), token("b", "")] });
        let filled = json!({ "env": [token("a", "x"), token("b", "")] });
        assert_eq!(fill(&spec, sealed), filled);
    }

    #[test]
    fn a_generated_secret_is_known_by_its_resource_alone() {
        let id: ResourceId = "1/demo/db".parse().unwrap();
        let token = generated_token(&id);
        assert!(is_token(&token) && has_secret(&token));
        let url = format!("redis://:{token}@[5d3::1]:6379");
        assert!(!is_token(&url) && !is_token("") && !is_token("plain"));
        let (range, secret) = find_secret(&url).unwrap();
        assert_eq!((&url[range], secret), (&*token, Secret::Generated { context: "1/demo/db" }));
        let sealed = secret_token("1/demo/db", "x");
        let both = json!([url, { "a": format!("{sealed}{token}") }, 1]);
        assert_eq!(tokens(&both), [token.clone(), sealed, token]);
        assert_eq!(
            mask(&both),
            json!(["redis://:(secret of db)@[5d3::1]:6379", { "a": "(secret db)(secret of db)" }, 1])
        );
    }
}
