//! Amounts: bytes and processors. In JSON and in scripts a number or a text with a unit.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "'{0}' is not a size: write a number of bytes or a text such as \"512MiB\" or \"10GiB\""
    )]
    Bytes(String),
    #[error(
        "'{0}' is not a number of processors: write a number from 0.01 to 1024, such as 2 or 0.5"
    )]
    Cpu(String),
}

/// A number of bytes. `"10GiB"`, `"10GB"` and plain numbers are read; a number is written.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        let bad = || QuantityError::Bytes(s.chars().take(40).collect());
        let size = s.trim().parse::<bytesize::ByteSize>().map_err(|_| bad())?.0;
        // JSON numbers and Rhai integers are signed 64-bit.
        if size > i64::MAX as u64 { Err(bad()) } else { Ok(Self(size)) }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
            Other(serde_json::Value),
        }
        match Form::deserialize(d)? {
            Form::Number(n) if n <= i64::MAX as u64 => Ok(Self(n)),
            Form::Number(n) => Err(QuantityError::Bytes(n.to_string())),
            Form::Text(t) => t.parse(),
            Form::Other(v) => Err(QuantityError::Bytes(v.to_string())),
        }
        .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes, or a text with a unit such as \"512MiB\" or \"10GiB\".",
            "anyOf": [{ "type": "integer", "minimum": 0 }, { "type": "string" }],
        })
    }
}

/// Processors, in thousandths. In JSON and scripts a number: `2`, `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cpu {
    millis: u32,
}

impl Cpu {
    const MAX_MILLIS: u32 = 1_024_000;

    pub const fn from_millis(millis: u32) -> Self {
        Self { millis }
    }
    pub const fn cores(n: u32) -> Self {
        Self { millis: n * 1000 }
    }
    pub const fn millis(self) -> u32 {
        self.millis
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.millis) / 1000.0).fmt(f)
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.millis.is_multiple_of(1000) {
            s.serialize_u32(self.millis / 1000)
        } else {
            s.serialize_f64(f64::from(self.millis) / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        let millis = value.as_f64().map(|n| (n * 1000.0).round());
        match millis {
            Some(m) if m >= 0.0 && m <= f64::from(Self::MAX_MILLIS) => {
                Ok(Self { millis: m as u32 })
            }
            _ => Err(serde::de::Error::custom(QuantityError::Cpu(value.to_string()))),
        }
    }
}

impl utoipa::PartialSchema for Cpu {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::Object::with_type(utoipa::openapi::schema::Type::Number).into()
    }
}
impl utoipa::ToSchema for Cpu {}

impl JsonSchema for Cpu {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cpu".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of processors; fractions are allowed.",
            "type": "number", "minimum": 0, "maximum": 1024,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_with_units() {
        assert_eq!("10GiB".parse::<Bytes>(), Ok(Bytes::gib(10)));
        assert_eq!("10GB".parse::<Bytes>(), Ok(Bytes(10_000_000_000)));
        assert_eq!(serde_json::from_str::<Bytes>("4096").unwrap(), Bytes(4096));
        for bad in ["-1", "\"-1\"", "\"ten\"", "1.5", "18446744073709551615", "\"16EiB\"", "null"] {
            let error = serde_json::from_str::<Bytes>(bad).unwrap_err().to_string();
            assert!(error.contains("is not a size"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn quantities_read_back(bytes in 0..=i64::MAX as u64, millis in 0..=1_024_000u32) {
            let json = serde_json::to_string(&(Bytes(bytes), Cpu::from_millis(millis))).unwrap();
            let back: (Bytes, Cpu) = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back, (Bytes(bytes), Cpu::from_millis(millis)));
        }
    }
}
