// SPDX-License-Identifier: Apache-2.0

// cel-check validates definitions and admission policies with the CEL environment of an older Kubernetes.
//
//	cel-check 1.30 < objects.jsonl
//
// It reads CustomResourceDefinitions and ValidatingAdmissionPolicies as JSON from standard input and prints for each
// one a line with its name and errors, as JSON. Like an API server of that version, which must be able to go back to
// the version before it, it knows the functions of CEL of the version before.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/google/cel-go/cel"
	admission "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
)

type verdict struct {
	Name   string   `json:"name"`
	Errors []string `json:"errors"`
}

// expression implements plugincel.NamedExpressionAccessor.
type expression struct {
	name, text string
	types      []*cel.Type
}

func (e expression) GetName() string          { return e.name }
func (e expression) GetExpression() string    { return e.text }
func (e expression) ReturnTypes() []*cel.Type { return e.types }

func definitionErrors(definition *apiextensions.CustomResourceDefinition) []string {
	for _, version := range definition.Spec.Versions {
		if version.Storage {
			definition.Status.StoredVersions = []string{version.Name}
		}
	}
	errors := []string{}
	for _, err := range validation.ValidateCustomResourceDefinition(context.Background(), definition) {
		errors = append(errors, err.Error())
	}
	return errors
}

func policyErrors(policy *admission.ValidatingAdmissionPolicy) []string {
	compiler, err := plugincel.NewCompositedCompiler(
		environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return []string{err.Error()}
	}
	errors := []string{}
	declared := plugincel.OptionalVariableDeclarations{HasParams: policy.Spec.ParamKind != nil, HasAuthorizer: true}
	note := func(where string, result plugincel.CompilationResult) {
		if result.Error != nil {
			errors = append(errors, fmt.Sprintf("%s: %s", where, result.Error.Detail))
		}
	}
	check := func(where, text string, declared plugincel.OptionalVariableDeclarations, types ...*cel.Type) {
		note(where, compiler.CompileCELExpression(expression{"", text, types}, declared, environment.NewExpressions))
	}
	for _, each := range policy.Spec.Variables {
		variable := expression{each.Name, each.Expression, []*cel.Type{cel.AnyType, cel.DynType}}
		note(each.Name, compiler.CompileAndStoreVariable(variable, declared, environment.NewExpressions))
	}
	for _, each := range policy.Spec.MatchConditions {
		check(each.Name, each.Expression, declared, cel.BoolType)
	}
	for index, each := range policy.Spec.Validations {
		check(fmt.Sprintf("validations[%d]", index), each.Expression, declared, cel.BoolType)
		if each.MessageExpression != "" {
			message := declared
			message.HasAuthorizer = false
			check(fmt.Sprintf("validations[%d].messageExpression", index), each.MessageExpression, message, cel.StringType)
		}
	}
	return errors
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: cel-check VERSION < objects.jsonl")
	}
	effective := basecompatibility.NewEffectiveVersionFromString(os.Args[1], "", "")
	registry := compatibility.DefaultComponentGlobalsRegistry
	registry.Reset()
	utilruntime.Must(registry.Register(
		basecompatibility.DefaultKubeComponent, effective, utilfeature.DefaultMutableFeatureGate))

	scheme := runtime.NewScheme()
	install.Install(scheme)
	utilruntime.Must(admission.AddToScheme(scheme))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder(
		apiextensions.SchemeGroupVersion, admission.SchemeGroupVersion)

	objects, verdicts := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var manifest json.RawMessage
		if err := objects.Decode(&manifest); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		decoded, _, err := decoder.Decode(manifest, nil, nil)
		if err != nil {
			log.Fatal(err)
		}
		var found verdict
		switch object := decoded.(type) {
		case *apiextensions.CustomResourceDefinition:
			found = verdict{object.Name, definitionErrors(object)}
		case *admission.ValidatingAdmissionPolicy:
			found = verdict{object.Name, policyErrors(object)}
		default:
			log.Fatalf("%T has no CEL rules", object)
		}
		if err := verdicts.Encode(found); err != nil {
			log.Fatal(err)
		}
	}
}
