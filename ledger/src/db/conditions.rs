//! The WHERE of a list: only what is asked for, so that a store can use the index for just that.

use rhizome_database::{Query, Value, query_built};

pub struct Conditions {
    /// The column that names and orders the rows.
    pub id: &'static str,
    tables: &'static str,
    texts: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    pub fn new(id: &'static str, tables: &'static str) -> Self {
        Self { id, tables, texts: Vec::new(), values: Vec::new() }
    }

    /// A condition, where `{}` stands for the value.
    pub fn add(&mut self, text: &'static str, value: impl Into<Value>) {
        self.texts.push(text.replace("{}", &format!("${}", self.next())));
        self.values.push(value.into());
    }

    /// `column operator value`, if there is a value.
    pub fn add_some(
        &mut self,
        column: &'static str,
        operator: &'static str,
        value: Option<impl Into<Value>>,
    ) {
        if let Some(value) = value {
            self.texts.push(format!("{column} {operator} ${}", self.next()));
            self.values.push(value.into());
        }
    }

    /// The number of the next value.
    pub fn next(&self) -> usize {
        self.values.len() + 1
    }

    /// Behind FROM.
    pub fn from(&self) -> String {
        match self.texts.as_slice() {
            [] => self.tables.to_owned(),
            texts => format!("{} WHERE {}", self.tables, texts.join(" AND ")),
        }
    }

    /// A statement that begins with these values.
    pub fn bound(self, sql: String) -> Query {
        self.values.into_iter().fold(query_built(sql), Query::bind)
    }
}
