//! The command-line client of eswitchd.
//!
//! In: a command line. Out: standard output, standard error, an exit status. Everything it does is
//! in [`eswitchd_api::cli`].

use std::{
    io::{self, Write},
    process::ExitCode,
};

use eswitchd_api::cli::{Arguments, Exit, run};

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "eswitchctl: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let mut out = io::stdout().lock();
    let exit = runtime.block_on(run(
        arguments,
        // Not locked here: keys are read by a thread of their own.
        &mut io::stdin(),
        &mut out,
        &mut io::stderr().lock(),
    ));
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Exit::Failed.into(),
        _ => exit.into(),
    }
}
