package io.moe4j.integration.architecture;

import com.sun.source.doctree.DocCommentTree;
import com.sun.source.doctree.DocTree;
import com.sun.source.tree.ClassTree;
import com.sun.source.tree.CompilationUnitTree;
import com.sun.source.tree.Tree;
import com.sun.source.util.DocTrees;
import com.sun.source.util.JavacTask;
import com.sun.source.util.TreePath;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.regex.Pattern;
import javax.lang.model.element.Modifier;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;

/** Finds public types that do not say since which version they exist. */
final class Since {
  private static final Pattern TAG = Pattern.compile("@since \\d+\\.\\d+\\.\\d+");

  private Since() {}

  /** {@return one line for each public top-level type of some sources without a version} */
  static List<String> missing(Collection<Path> sources) throws IOException {
    JavaCompiler javac = ToolProvider.getSystemJavaCompiler();
    List<String> found = new ArrayList<>();
    try (StandardJavaFileManager manager = javac.getStandardFileManager(null, null, null)) {
      JavacTask task =
          (JavacTask)
              javac.getTask(
                  null,
                  manager,
                  null,
                  List.of("-proc:none"),
                  null,
                  manager.getJavaFileObjectsFromPaths(sources));
      DocTrees docs = DocTrees.instance(task);
      for (CompilationUnitTree unit : task.parse()) {
        for (Tree tree : unit.getTypeDecls()) {
          if (tree instanceof ClassTree type
              && type.getModifiers().getFlags().contains(Modifier.PUBLIC)) {
            DocCommentTree doc =
                docs.getDocCommentTree(new TreePath(new TreePath(unit), type));
            if (doc == null || doc.getBlockTags().stream().noneMatch(Since::isVersion)) {
              found.add(
                  "%s.%s has no @since with a version such as 0.2.0"
                      .formatted(unit.getPackageName(), type.getSimpleName()));
            }
          }
        }
      }
    }
    return found;
  }

  private static boolean isVersion(DocTree tag) {
    return tag.getKind() == DocTree.Kind.SINCE && TAG.matcher(tag.toString()).matches();
  }
}
