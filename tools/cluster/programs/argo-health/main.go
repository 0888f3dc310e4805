// SPDX-License-Identifier: Apache-2.0

// argo-health runs a health check of Argo CD in the interpreter that Argo CD uses, with the same libraries.
//
//	argo-health health.lua < objects.jsonl
//
// It reads objects as JSON from standard input and prints for each one a line with the health that the check
// returns, as JSON. An error of the check ends the program with status 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
)

// timeout is the time limit of Argo CD for a check.
const timeout = time.Second

// libraries are those that a check in argocd-cm has: no string, no math.
var libraries = []struct {
	name string
	open lua.LGFunction
}{
	{lua.LoadLibName, lua.OpenPackage},
	{lua.BaseLibName, lua.OpenBase},
	{lua.TabLibName, lua.OpenTable},
	{lua.OsLibName, openSafeOs},
}

// openSafeOs opens the os library without the functions that Argo CD withholds.
func openSafeOs(state *lua.LState) int {
	lua.OpenOs(state)
	all := state.GetGlobal(lua.OsLibName).(*lua.LTable)
	safe := state.NewTable()
	for _, name := range []string{"time", "date"} {
		safe.RawSetString(name, all.RawGetString(name))
	}
	state.SetGlobal(lua.OsLibName, safe)
	return 0
}

// health returns the table that the check returns for the object, as JSON.
func health(check string, object []byte) ([]byte, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range libraries {
		call := lua.P{Fn: state.NewFunction(library.open), Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	state.SetContext(ctx)
	obj, err := luajson.Decode(state, object)
	if err != nil {
		return nil, err
	}
	state.SetGlobal("obj", obj)
	if err := state.DoString(check); err != nil {
		return nil, err
	}
	result := state.Get(-1)
	if result.Type() != lua.LTTable {
		return nil, fmt.Errorf("the check returned a %s, not a table", result.Type())
	}
	return luajson.Encode(result)
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: argo-health health.lua < objects.jsonl")
	}
	check, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	objects := json.NewDecoder(os.Stdin)
	for {
		var object json.RawMessage
		if err := objects.Decode(&object); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		result, err := health(string(check), object)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(result))
	}
}
