// Package famulus is the Go client of famulus, a self-hosted service that owns AI assistants, threads and runs.
//
// A [Client] holds the generated stubs, and follows runs on top of them: [Client.StreamRun] and [Client.WatchRun] give
// the events of a run in order, each once, over as many connections as it takes; [Client.RunToEnd] and [Client.WaitRun]
// give the result. Streams can answer the function tools of a run with Go functions, see [WithTools]. Their errors are
// of type [*Error], and [FromError] tells what is in an error of a stub.
//
// The generated messages and stubs are in the package famulusv1 beside this one.
package famulus
