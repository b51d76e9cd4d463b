//! Secrets that a script was given, kept out of what it says.

use rhizome_model::Failure;
use serde_json::Value;

/// Shorter secrets would blot out parts of ordinary words.
const MIN_LENGTH: usize = 4;

#[derive(Default)]
pub struct Redactor(Vec<String>);

impl Redactor {
    pub fn learn(&mut self, secret: &str) {
        if secret.len() >= MIN_LENGTH && !self.0.iter().any(|known| known == secret) {
            self.0.push(secret.to_owned());
        }
    }

    pub fn text(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), "***") } else { text }
        })
    }

    pub fn value(&self, value: Value) -> Value {
        if self.0.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(k, v)| (self.text(k), self.value(v))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }

    pub fn failure(&self, mut failure: Failure) -> Failure {
        failure.message = self.text(failure.message);
        failure.detail = failure.detail.map(|detail| self.text(detail));
        failure
    }
}
