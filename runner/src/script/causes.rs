//! Why a version failed: every cause with its line, not only the first.

use rhizome_model::{Code, DesiredResource, Failure};

/// A resource that could not be made.
pub(super) struct Cause {
    pub(super) resource: DesiredResource,
    pub(super) failure: Failure,
    /// Whether the script was told, and went on.
    pub(super) caught: bool,
}

impl Cause {
    /// Whether it is only the consequence of another: it needed what failed, or did not begin.
    fn is_consequence(&self) -> bool {
        matches!(self.failure.code, Code::DependencyFailed | Code::Cancelled)
    }

    fn line(&self) -> String {
        let DesiredResource { line, kind, name, .. } = &self.resource;
        format!("line {line}: {kind} '{name}': {}", self.failure)
    }
}

/// All of them as one failure, of which the first cause gives code and message. `first` is why the
/// script itself stopped, if it did.
pub(super) fn together(first: Option<Failure>, mut causes: Vec<Cause>) -> Option<Failure> {
    causes.sort_by_key(|cause| (cause.is_consequence(), cause.resource.line));
    let roots = causes.iter().filter(|cause| !cause.is_consequence()).count();
    if roots > 0 || first.is_some() {
        // What only followed is known by its cause.
        causes.truncate(roots);
    }
    let failure = match (first, causes.first()) {
        (Some(first), _) => first,
        (None, Some(cause)) => {
            let name = cause.resource.name.clone();
            cause.failure.clone().about(name)
        }
        (None, None) => return None,
    };
    let lines: Vec<_> = causes.iter().map(Cause::line).collect();
    let told = failure.detail.iter().cloned();
    let detail: Vec<_> = told.chain(lines).collect();
    Some(if detail.is_empty() { failure } else { failure.with_detail(detail.join("\n")) })
}

#[cfg(test)]
mod tests {
    use rhizome_model::WorkloadKind;

    use super::*;

    fn cause(name: &str, line: usize, code: Code) -> Cause {
        let (kind, spec) = (WorkloadKind::ALL[0], serde_json::Value::Null);
        let resource = DesiredResource { name: name.parse().unwrap(), kind, spec, line };
        Cause { resource, failure: Failure::new(code, format!("{name} is broken")), caught: false }
    }

    #[test]
    fn every_cause_is_told_and_no_consequence() {
        let causes = vec![
            cause("c", 7, Code::Cancelled),
            cause("b", 9, Code::ImageNotFound),
            cause("d", 1, Code::DependencyFailed),
            cause("a", 3, Code::Internal),
        ];
        let failure = together(None, causes).unwrap();
        assert_eq!((failure.code, failure.resource.unwrap().as_str()), (Code::Internal, "a"));
        let detail = failure.detail.unwrap();
        let (a, b) = (detail.find("line 3: volume 'a'").unwrap(), detail.find("line 9").unwrap());
        assert!(a < b && !detail.contains("'c'") && !detail.contains("'d'"), "{detail}");
    }

    #[test]
    fn what_the_script_says_comes_first() {
        let said = Failure::new(Code::ScriptFailed, "enough");
        let failure = together(Some(said), vec![cause("a", 3, Code::Internal)]).unwrap();
        assert_eq!(failure.code, Code::ScriptFailed);
        assert!(failure.detail.unwrap().contains("line 3: volume 'a'"));
        assert!(together(None, Vec::new()).is_none());
        let alone = together(None, vec![cause("c", 7, Code::Cancelled)]).unwrap();
        assert_eq!(alone.code, Code::Cancelled, "nothing else is known");
    }
}
