//! Statements of SQL as the server of the model knows them.

/// One statement of SQL. A number makes its text another one than all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sql {
    Select {
        columns: usize,
        rows: usize,
    },
    /// So many parameters, and rows.
    Parameters(usize),
    Insert,
    Fails,
    FailsInRows,
    NoSyntax,
    Empty,
    /// A procedure with a result, and one with a parameter that it sets.
    Call,
    CallOut,
    /// It runs, and says what the server says of statements that do not.
    Pretends,
    /// SQL's own, with names.
    Prepare(u8),
    Deallocate(u8),
    Execute(u8),
    Load,
}

impl Sql {
    pub(super) fn text(&self, number: usize) -> String {
        match self {
            Self::Select { columns, rows } => format!("select {columns} columns, {rows} rows -- {number}"),
            Self::Parameters(count) => format!("select {} -- {number}", vec!["?"; *count].join(", ")),
            Self::Insert => format!("insert into t values (?) -- {number}"),
            Self::Fails => format!("select nothing from nowhere -- {number}"),
            Self::FailsInRows => format!("select n + 1 from t -- {number}"),
            Self::NoSyntax => format!("selct -- {number}"),
            Self::Empty => String::new(),
            Self::Call => format!("call p() -- {number}"),
            Self::CallOut => format!("call p(@a) -- {number}"),
            Self::Pretends => format!("call pretends() -- {number}"),
            Self::Prepare(name) => format!("prepare n{name} from 'select 1' -- {number}"),
            Self::Deallocate(name) => format!("deallocate prepare n{name} -- {number}"),
            Self::Execute(name) => format!("execute n{name} -- {number}"),
            Self::Load => format!("load data local infile 'rows{number}.csv' into table t -- {number}"),
        }
    }

    /// Columns and rows.
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Select { columns, rows } => (*columns, *rows),
            Self::Parameters(count) => (2, *count),
            Self::FailsInRows => (2, 3),
            _ => (1, 1),
        }
    }

    pub(super) fn has_result(&self) -> bool {
        matches!(self, Self::Select { .. } | Self::Parameters(_) | Self::FailsInRows)
    }

    pub(super) fn parameters(&self) -> usize {
        match self {
            Self::Parameters(count) => *count,
            Self::Insert | Self::CallOut => 1,
            _ => 0,
        }
    }

    pub(super) fn is_refused_by_prepare(&self) -> bool {
        let unsupported = matches!(self, Self::Prepare(_) | Self::Deallocate(_) | Self::Execute(_) | Self::Load);
        unsupported || matches!(self, Self::NoSyntax | Self::Empty | Self::Fails)
    }
}

/// The number in a text.
pub(super) fn run_of(text: &str) -> usize {
    text.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
