//! A plugin of buf (or protoc) that writes the Rust stubs: one file per package, messages by prost, services by tonic.
//!
//! It reads a `CodeGeneratorRequest` from standard input and writes a `CodeGeneratorResponse` to standard output, so
//! that neither protoc nor a build script is needed.

use std::collections::HashSet;
use std::error::Error;
use std::io::{Read, Write};

use prost::Message;
use prost_build::{Config, Module};
use prost_types::FileDescriptorProto;
use prost_types::compiler::code_generator_response::{Feature, File};
use prost_types::compiler::{CodeGeneratorRequest, CodeGeneratorResponse};

const HEADER: &str = "// Generated from protos/ by clients/rust/generator. Do not edit.\n\n";

fn main() -> Result<(), Box<dyn Error>> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let response = match generate(CodeGeneratorRequest::decode(input.as_slice())?) {
        Ok(file) => CodeGeneratorResponse { file, ..supported() },
        Err(error) => CodeGeneratorResponse { error: Some(error.to_string()), ..supported() },
    };
    std::io::stdout().write_all(&response.encode_to_vec())?;
    Ok(())
}

fn generate(request: CodeGeneratorRequest) -> Result<Vec<File>, Box<dyn Error>> {
    let module = |file: &FileDescriptorProto| Module::from_protobuf_package_name(file.package());
    let wanted: HashSet<&str> = request.file_to_generate.iter().map(String::as_str).collect();
    let packages: HashSet<Module> =
        request.proto_file.iter().filter(|file| wanted.contains(file.name())).map(module).collect();
    // The imported ones are needed to see what their messages may derive.
    let files = request.proto_file.into_iter().map(|file| (module(&file), file)).collect();
    let mut config = Config::new();
    // A Run is large, and an event of any kind has room for one.
    config.boxed(".famulus.v1.RunStateChanged.run").boxed(".famulus.v1.Snapshot.run");
    // Only who scripts a service of his own, in a test say, pays for the server's half.
    let services = tonic_prost_build::configure()
        .generate_default_stubs(true)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]");
    let mut written: Vec<File> = config
        .service_generator(services.service_generator())
        .generate(files)?
        .into_iter()
        .filter(|(module, _)| packages.contains(module))
        .map(|(module, content)| File {
            name: Some(module.to_file_name_or("_")),
            content: Some(format!("{HEADER}{content}")),
            ..File::default()
        })
        .collect();
    written.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(written)
}

fn supported() -> CodeGeneratorResponse {
    CodeGeneratorResponse {
        supported_features: Some(Feature::Proto3Optional as u64),
        ..CodeGeneratorResponse::default()
    }
}
