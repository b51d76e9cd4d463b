//! What a command ends with when it cannot do its work: one failure or several, and the exit code.

use rhizome_model::{Code, Failure};

#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// Never empty; the first one decides what is said first.
    pub failures: Vec<Failure>,
    pub exit: u8,
}

impl From<rhizome_identity::manager::IdentityError> for Error {
    fn from(error: rhizome_identity::manager::IdentityError) -> Self {
        Failure::from(error).into()
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let exit = failure.code.class().exit_code();
        Self { failures: vec![failure], exit }
    }
}

impl Error {
    /// Several at once: the findings of a check.
    pub fn refused(failures: Vec<Failure>) -> Self {
        Self { failures, exit: rhizome_model::Class::Refused.exit_code() }
    }

    /// clap's own words, without its "error: " (that is added again where it is shown).
    pub fn from_clap(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let (message, rest) = text.split_once('\n').unwrap_or((text, ""));
        let mut failure = misuse(message);
        if !rest.trim().is_empty() {
            failure = failure.with_detail(rest.trim_matches('\n'));
        }
        failure.into()
    }
}

/// The command line makes no sense: exit code 2.
pub fn misuse(message: impl Into<String>) -> Failure {
    Failure::new(Code::BadRequest, message)
}

/// A file, or something else of this machine, that does not do what it should.
pub fn internal(what: &str, cause: &dyn std::error::Error) -> Failure {
    Failure::new(Code::Internal, format!("{what}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_the_exit_code() {
        for (code, exit) in [
            (Code::ImageNotFound, 1),
            (Code::BadRequest, 2),
            (Code::Replayed, 3),
            (Code::InsufficientCapacity, 3),
            (Code::Unavailable, 4),
        ] {
            assert_eq!(Error::from(Failure::new(code, "x")).exit, exit, "{code}");
        }
    }

    #[test]
    fn claps_text_is_split_into_message_and_detail() {
        use clap::CommandFactory;
        let error = crate::cli::Cli::command()
            .try_get_matches_from(["rhizome", "deploy", "x.rhai"])
            .unwrap_err();
        let error = Error::from_clap(&error);
        assert_eq!(error.exit, 2);
        assert!(!error.failures[0].message.starts_with("error"));
        assert!(error.failures[0].detail.as_deref().unwrap_or_default().contains("--name"));
    }
}
